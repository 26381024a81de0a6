"""Files that mmpretrain, mmdet and mmsegmentation start from: VisionTransformer and SwinTransformer of mmpretrain.

mmdet's and mmsegmentation's own SwinTransformer have the same names. Their merging unfolds each channel's 2 x 2 tokens,
where ours concatenates those of Liu et al. 2021, so its weights are reordered.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from bimkern.exporters.trained import Trained
from bimkern.exporters.whole_file import write_pickled
from bimkern.models.encoder import Weights
from bimkern.models.swin import SwinConfig
from bimkern.models.swin_layers import resized_table

_PREFIX = "backbone."
_VIT = {".norm1.": ".ln1.", ".norm2.": ".ln2."}
_SWIN = {".attn.": ".attn.w_msa."}
_MLP = {".mlp.fc1.": ".ffn.layers.0.0.", ".mlp.fc2.": ".ffn.layers.1."}
_TABLE = "relative_position_bias_table"
_COLORS = 3  # channels, which are read as BGR; there is no other order


def write_mmpretrain(path: Path, trained: Trained, depth: int) -> None:
    """Write a file of torch.save, its weights under "state_dict" with the prefix "backbone.".

    Raises:
        ConfigError: mmpretrain has no such encoder, or the file cannot be written.
    """
    encoder = trained.encoder(depth)
    weights = trained.backbone(depth, trained.layout(depth, "mmpretrain", "mmpretrain"))
    named = _swin(weights, encoder) if isinstance(encoder, SwinConfig) else _renamed(weights, _VIT | _MLP)
    prefixed = {_PREFIX + name: tensor for name, tensor in named.items()}
    write_pickled(path, {"state_dict": prefixed, "meta": trained.metadata(depth)})


def _renamed(weights: Weights, parts: dict[str, str]) -> dict[str, Tensor]:
    pattern = re.compile("|".join(map(re.escape, parts)))
    return {pattern.sub(lambda match: parts[match[0]], name): tensor for name, tensor in weights.items()}


def _swin(weights: Weights, encoder: SwinConfig) -> dict[str, Tensor]:
    """Return weights of mergings in the order there, and tables for whole windows with their indices.

    The indices are needed: resizing a table, mmpretrain deletes them from the file.
    """
    window, found = (encoder.window, encoder.window), {}
    for name, tensor in _renamed(weights, _SWIN | _MLP).items():
        if ".downsample." in name:
            found[name] = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].mT.flatten(-2)
        elif name.endswith(_TABLE):
            stage = int(name.split(".")[1])
            found[name] = resized_table(tensor, encoder.table_window(stage), window)
            found[name.replace(_TABLE, "relative_position_index")] = _relative_index(encoder.window)
        else:
            found[name] = tensor
    return found


def _relative_index(window: int) -> Tensor:
    """Return which row of a table each pair of tokens in a window takes, [window ** 2, window ** 2]."""
    token = torch.arange(window**2)
    row, column = token // window, token % window
    rows, columns = (place[:, None] - place + window - 1 for place in (row, column))
    return rows * (2 * window - 1) + columns


def backbone_config(path: Path, trained: Trained, depth: int) -> str:
    """Return the lines that a config needs for such a file."""
    start = {"type": "Pretrained", "checkpoint": str(path), "prefix": _PREFIX}
    backbone = {**trained.layout(depth, "mmpretrain", "mmpretrain").settings, "init_cfg": start}
    mean, std = trained.pixels()
    preprocessing = {"mean": mean, "std": std, **({"bgr_to_rgb": True} if len(mean) == _COLORS else {})}
    read = "" if len(mean) == _COLORS else f"# images of {len(mean)} channels need a loader of their own\n"
    return (
        "custom_imports = dict(imports=['mmpretrain.models'])\n"
        f"backbone = {backbone}\n"
        f"preprocessing = {preprocessing}\n{read}"
        "# with model = dict(backbone=backbone, data_preprocessor=dict(type=..., **preprocessing), ...)"
    )
