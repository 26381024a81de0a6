"""A trained encoder to evaluate, out of a run folder, a checkpoint or an exported file, and its features at any depth.

Shapes: B images, C channels, H W pixels, R prefix tokens, N patches, D width after a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from bimkern.data.decoding import Alpha, Decoding, Range
from bimkern.data.formats import MAX_PIXELS
from bimkern.evaluate.errors import EvaluationError
from bimkern.exporters.trained import Preprocessing, Trained, below, depths, read_trained
from bimkern.importers.weights_file import is_run
from bimkern.models.encoder import OWN_LAYOUT, EncoderConfig, NormalizesOtherwise, Weights, WholeImages
from bimkern.models.exported import load_encoder, weights_file
from bimkern.models.layers import LAYER_NORM_EPS, LayerNorm

Pool = Literal["mean", "cls"]
_PARTS = ("weight", "bias")  # of a norm


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An encoder, and what its features take besides."""

    encoder: Any  # an nn.Module that follows Encoder
    norms: Mapping[int, nn.Module]  # the trained norms, by the depth that they follow
    images: Preprocessing
    max_pixels: int = MAX_PIXELS  # of an image, in its training

    @property
    def config(self) -> EncoderConfig:
        config: EncoderConfig = self.encoder.config
        return config

    def count_parameters(self, depth: int) -> int:
        """Count the parameters of the first layers, and of the norm behind them where it is trained."""
        group = self.config.layer_group
        counted = [tensor for name, tensor in self.encoder.named_parameters() if group(name) <= depth]
        norm = self.norms.get(depth)
        return sum(tensor.numel() for tensor in [*counted, *(() if norm is None else norm.parameters())])

    def to(self, device: torch.device) -> "Backbone":
        """Move it to a device, and return it."""
        for module in (self.encoder, *self.norms.values()):
            module.to(device)
        return self

    def check_pool(self, pool: Pool) -> None:
        """Raise EvaluationError unless features can be pooled so."""
        if pool == "cls" and not self.config.num_prefix:
            raise EvaluationError(f"pool cls: {type(self.config).__name__} has no class token; choose mean")

    @torch.no_grad()
    def features(self, images: Tensor, depths: Sequence[int], pool: Pool = "mean") -> dict[int, Tensor]:
        """Return one feature vector per image after each of some depths, from one forward pass of the deepest.

        The tokens after a layer are normalized, by the norm of the head that reads this layer or, where there is none,
        by a layer norm without weights; then their patches are averaged, or the class token is taken.

        Args:
            images: [B, C, H, W] uint8.
            depths: numbers of layers, each in [1, depth].
            pool: mean of the patch tokens, or the class token.

        Returns:
            [B, D] float32 for each depth.

        Raises:
            EvaluationError: the encoder has no class token.

        Source: He et al. 2022 (MAE), appendix A.1, takes the class token for the linear probe; the mean is what all
        methods fine-tune.
        """
        self.check_pool(pool)
        num_prefix, found = self.config.num_prefix, {}
        for depth, tokens in enumerate(self.run(images, max(depths)), start=1):
            if depth in depths:
                read = tokens[:, :1] if pool == "cls" else tokens[:, num_prefix:]  # the norm is of each token alone
                found[depth] = self._normalized(read, depth).mean(dim=1).float()
        return found

    @torch.no_grad()
    def run(self, images: Tensor, num_layers: int) -> Iterator[Tensor]:
        """Yield the tokens [B, R+N, D] after each of the first layers, of images [B, C, H, W] uint8."""
        mean, std = (torch.tensor(values, device=images.device) for values in (self.images.mean, self.images.std))
        view = WholeImages(self.config.level(0).grid(*images.shape[2:]))
        tokens = self.encoder.embed(images, mean, std)
        for layer in range(num_layers):
            tokens = self.encoder.run_layer(layer, tokens, view)
            yield tokens

    def _normalized(self, tokens: Tensor, depth: int) -> Tensor:
        norm = self.norms.get(depth)
        if norm is not None:
            normalized: Tensor = norm(tokens)
            return normalized
        return F.layer_norm(tokens, tokens.shape[-1:], eps=_norm_eps(self.config))


def common_decoding(
    backbones: Mapping[str, Backbone], alpha: Alpha | None = None, stated: Range | None = None
) -> Decoding:
    """Return how images are decoded for all backbones, by the run.

    Args:
        backbones: by the run.
        alpha: what becomes of alpha; None: as in their training, likewise range.
        stated: range of values of more than 8 bits.

    Raises:
        EvaluationError: they differ, or there is no such decoding.
    """
    found = {run: _decoding(backbone, alpha, stated) for run, backbone in backbones.items()}
    if len(set(found.values())) > 1:
        several = ", ".join(f"{one} of {run}" for run, one in found.items())
        raise EvaluationError(f"every RUN must take the same images, got {several}; give them one by one")
    return next(iter(found.values()))


def _decoding(backbone: Backbone, alpha: Alpha | None, stated: Range | None) -> Decoding:
    images = backbone.images
    try:
        return Decoding(
            channels=backbone.config.channels,
            alpha=alpha or images.alpha,
            range=images.range if stated is None else stated,
        )
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def read_backbone(path: Path) -> Backbone:
    """Read a run folder, a checkpoint inside one, or a backbone that `bimkern.export` wrote, a folder or its file.

    Raises:
        ConfigError, CheckpointError: it is a run that cannot be read.
        EvaluationError, BackboneError: there is nothing, or no such backbone.
    """
    if is_run(path):
        _, trained = read_trained(path)
        return _of_run(trained)
    if not weights_file(path).is_file():
        raise EvaluationError(
            f"{path} holds no encoder; give a run folder, one of its checkpoints, or a backbone that python -m "
            f"bimkern.export wrote"
        )
    return _of_export(path)


def _of_run(trained: Trained) -> Backbone:
    method = trained.config.method
    encoder = method.encoder.module(method.encoder)
    encoder.load_state_dict(dict(below("encoder", trained.weights)))
    norms = {
        depth: _norm(method.encoder, dict(below(f"heads.{head}.in_norm", trained.weights)))
        for head, depth in enumerate(depths(method))
        if f"heads.{head}.in_norm.weight" in trained.weights
    }
    backbone = _frozen(encoder, norms, trained.preprocessing)
    return replace(backbone, max_pixels=trained.config.run.max_pixels)


def _of_export(path: Path) -> Backbone:
    encoder = load_encoder(path)
    config: EncoderConfig = encoder.config
    with safe_open(weights_file(path), framework="pt") as file:
        names, said = set(file.keys()), file.metadata()
        layout = OWN_LAYOUT if encoder.state_dict().keys() <= names else config.layout("timm")
        prefix = None if layout is None else layout.norm
        trained = prefix is not None and f"{prefix}weight" in names
        norms = {config.depth: _norm(config, {p: file.get_tensor(f"{prefix}{p}") for p in _PARTS})} if trained else {}
    try:
        images = Preprocessing.said(said, config)
    except (KeyError, ValueError, TypeError) as error:
        raise EvaluationError(
            f"{path}: it does not say how images are prepared ({error!r}); export it again"
        ) from error
    return _frozen(encoder, norms, images)


def _norm(config: EncoderConfig, weights: Weights) -> nn.Module:
    norm = LayerNorm(len(weights["weight"]), eps=_norm_eps(config))
    norm.load_state_dict(weights)
    return norm


def _norm_eps(config: EncoderConfig) -> float:
    return config.norm_eps if isinstance(config, NormalizesOtherwise) else LAYER_NORM_EPS


def _frozen(encoder: nn.Module, norms: Mapping[int, nn.Module], images: Preprocessing) -> Backbone:
    for module in (encoder, *norms.values()):
        module.eval().requires_grad_(False)
    return Backbone(encoder=encoder, norms=norms, images=images)
