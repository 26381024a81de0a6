"""The trained encoder of a run or an export, ready to be trained further inside another network."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.evaluate.backbone import Backbone, read_backbone
from bimkern.models.pyramid import SwinPyramid, ViTPyramid
from examples.transfer.errors import TransferError

Pyramid = ViTPyramid | SwinPyramid


def read_encoder(path: Path, *, scratch: bool = False) -> Backbone:
    """Read an encoder with trainable weights; from scratch, with those of a new one instead.

    Raises:
        BimkernError: there is none.
    """
    backbone = read_backbone(path)
    if scratch:
        config = backbone.config
        backbone = Backbone(encoder=config.module(config), norms={}, images=backbone.images)
    backbone.encoder.requires_grad_(True)
    return backbone


def pyramid_of(backbone: Backbone, build: Callable[[Any], Pyramid]) -> Pyramid:
    """Build a pyramid over an encoder.

    Raises:
        TransferError: there is none for such an encoder.
    """
    try:
        return build(backbone.encoder)
    except ValueError as error:
        raise TransferError(str(error)) from error


def set_drop_path(encoder: Any, rate: float) -> None:
    """Skip residual branches of images at random in training, at rates that grow from 0 to `rate` at the last layer.

    Source: Huang et al. 2016 (stochastic depth); linear in depth as in the programs of Swin and ViTDet.
    """
    layers = [module for module in encoder.modules() if {"attn", "mlp"} <= dict(module.named_children()).keys()]
    for number, layer in enumerate(layers):
        here = rate * number / max(1, len(layers) - 1)
        for branch in (layer.attn, layer.mlp) if here else ():
            branch.register_forward_hook(lambda branch, _, out, rate=here: _drop(out, rate) if branch.training else out)


def _drop(branch: Tensor, rate: float) -> Tensor:
    kept = torch.rand(len(branch), 1, 1, device=branch.device) >= rate
    return branch * kept / (1 - rate)


def parameter_groups(
    model: nn.Module, encoder: Any, *, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Group the parameters of a network: the lower a layer of the encoder, the smaller its rate; vectors do not decay.

    Source: Bao et al. 2022 (BEiT), layer-wise learning rates.
    """
    depth, group = encoder.config.depth, encoder.config.layer_group
    below = {parameter: depth + 1 - group(name) for name, parameter in encoder.named_parameters()}
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in _trainable(model):
        found.setdefault((below.get(parameter, 0), parameter.dim() > 1), []).append(parameter)
    return [
        {"params": params, "lr": lr * layer_decay**steps, "weight_decay": weight_decay if decays else 0.0}
        for (steps, decays), params in found.items()
    ]


def _trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
