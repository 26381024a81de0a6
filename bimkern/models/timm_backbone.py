"""Backbones of timm by name: any that puts out feature maps, for methods in which all tokens pass the encoder.

Where timm's feature network is a sequence of modules, its stem is the embedding and every level a layer. Where it is
not, the network up to its last level is one layer, and the embedding cuts images into squares of pixels.

Shapes: B images, C channels, H W pixels, N patches, T tokens of a grid of h x w, D width.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from bimkern import pieces
from bimkern.image_size import IMAGENET_SIZE, ImageSize
from bimkern.models import timm_networks
from bimkern.models.checks import check_counts, read_sizes
from bimkern.models.encoder import OWN_LAYOUT, EncoderConfig, Grid, Layout, Level, Program, View, Weights, grid_after
from bimkern.models.layers import LAYER_NORM_EPS
from bimkern.models.painting import PaintedEncoder
from bimkern.models.random_weights import RandomWeights
from bimkern.models.timm_networks import Description

_WHOLE = {"num_classes": 0, "global_pool": "avg"}  # of the networks that weights are exported for
Argument = bool | int | float | str | tuple[int | float, ...] | None
_HALF = (torch.bfloat16, torch.float16)


class _Part(nn.Sequential):
    """Modules of a feature network, under the names that timm gives them there; half precision is by autocast."""

    compute_dtype: torch.dtype | None = None

    def __init__(self, modules: Mapping[str, nn.Module], *, channels_last: bool) -> None:
        """Take the modules, and whether they put out [B, h, w, D] instead of [B, D, h, w]."""
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._puts_channels_last = channels_last

    def run(self, maps: Tensor) -> Tensor:
        """Return tokens [B, T, D] from what the modules take."""
        dtype = self.compute_dtype
        with torch.autocast(maps.device.type, dtype) if dtype in _HALF else nullcontext():
            found = super().forward(maps)
        last = found[-1] if isinstance(found, list) else found
        tokens = last.flatten(1, 2) if self._puts_channels_last else last.flatten(2).mT
        return tokens.to(maps.dtype)


class TimmStem(_Part):
    """What comes before the levels."""

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


class TimmLevel(_Part):
    """A level, from the tokens of the one before."""

    def __init__(self, modules: Mapping[str, nn.Module], *, takes_channels_last: bool, channels_last: bool) -> None:
        super().__init__(modules, channels_last=channels_last)
        self._takes_channels_last = takes_channels_last

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        return self.run(tokens.unflatten(1, grid) if self._takes_channels_last else tokens.mT.unflatten(2, grid))


class Pixels(nn.Module):
    """The embedding where a network is a single layer: the pixels of every patch."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        return pixel_unshuffle(images, self.patch).flatten(2).mT


class Whole(_Part):
    """A network that is a single layer, from the pixels of patches."""

    def __init__(self, modules: Mapping[str, nn.Module], patch: int, *, channels_last: bool) -> None:
        super().__init__(modules, channels_last=channels_last)
        self.patch = patch

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        return self.run(pixel_shuffle(tokens.mT.unflatten(2, grid), self.patch))


class TimmBackbone(PaintedEncoder):
    """A feature network of timm; masked patches can be painted over in its images."""

    def __init__(self, config: "TimmBackboneConfig") -> None:
        super().__init__()
        self.config = config
        network = timm_networks.create(config.name, config.image_size, config.arguments)
        formats = _described(config, config.image_size).channels_last
        if network.stem:
            self.embedding = TimmStem(network.stem, channels_last=formats[0])
            self.layers = nn.ModuleList(
                TimmLevel(modules, takes_channels_last=before, channels_last=after)
                for modules, (before, after) in zip(network.levels[: config.depth], pairwise(formats), strict=False)
            )
        else:
            self.embedding = Pixels(network.patch)
            self.layers = nn.ModuleList([Whole(network.levels[0], network.patch, channels_last=formats[1])])

    def run_layer(self, layer: int, tokens: Tensor, view: View) -> Tensor:
        found: Tensor = self.layers[layer](tokens, grid_after(self.config, layer, view.grid))
        return found


class TimmPatchBackbone(TimmBackbone):
    """One whose stem mixes no patches, so that a token can replace them behind it."""

    def embed_filled(self, images: Tensor, view: View, token: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        assert view.masked is not None
        return torch.where(view.masked[..., None] > 0, token, self.embed(images, mean, std))


@pieces.register(EncoderConfig)
@dataclass(frozen=True, kw_only=True)
class TimmBackboneConfig:
    """A backbone by its name in timm, with random weights; levels, widths and grids are what timm says.

    Raises:
        ValueError: timm is missing or has no such backbone, or that has no maps of features or does not take such
            images.
    """

    name: str
    image_size: ImageSize = IMAGENET_SIZE
    channels: int = 3
    depths: tuple[int, ...] | None = None  # blocks of every stage, to train fewer than timm has; None: all
    num_levels: int | None = None  # the first ones alone; None: all
    model_args: dict[str, Argument] = field(default_factory=dict)  # other arguments of timm's network
    num_prefix: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_counts(self, "channels")
        read_sizes(self, "image_size")
        described, most = _described(self, self.image_size), len(self._levels) - 1
        if self.num_levels is not None and not 1 <= self.num_levels <= most:
            raise ValueError(f"TimmBackboneConfig: num_levels must be in [1, {most}], got {self.num_levels}")
        if self.depths is not None and not described.names <= _described(self.whole, self.image_size).names:
            raise ValueError(
                f"TimmBackboneConfig: depths must be at most those of {self.name}, got {self.depths}; "
                f"set model_args.depths for a larger network"
            )

    def __hash__(self) -> int:
        return hash(json.dumps(pieces.to_json(self), sort_keys=True))

    @property
    def arguments(self) -> dict[str, Any]:
        """What timm builds it with, besides sizes of images."""
        cut = {} if self.depths is None else {"depths": self.depths}
        return {"in_chans": self.channels, **self.model_args, **cut}

    @property
    def whole(self) -> "TimmBackboneConfig":
        """The config of the backbone with all that timm has of it."""
        return replace(self, depths=None, num_levels=None)

    @property
    def _levels(self) -> tuple[Level, ...]:
        return _described(self, self.image_size).levels

    @property
    def module(self) -> type[TimmBackbone]:
        return TimmPatchBackbone if _described(self, self.image_size).patchwise else TimmBackbone

    @property
    def norm_eps(self) -> float:
        norm = _whole_norm(self.whole)
        return LAYER_NORM_EPS if norm is None else norm.eps

    @property
    def depth(self) -> int:
        return self.num_levels or len(self._levels) - 1

    def level(self, num_layers: int) -> Level:
        return self._levels[num_layers]

    def layer_group(self, name: str) -> int:
        part, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) + 1 if part == "layers" else 0

    def cut(self, depth: int) -> "TimmBackboneConfig":
        return replace(self, num_levels=depth if depth < len(self._levels) - 1 else None)

    def resized(self, image_size: ImageSize) -> "TimmBackboneConfig":
        """Return the config for another image size, to which images may also change while the network is trained."""
        changed = replace(self, image_size=image_size)
        _described(self, changed.image_size)
        return changed

    def layout(self, program: Program) -> Layout | None:
        """Return the whole backbone in timm's terms: what is not among our weights is drawn at random."""
        return _timm_layout(self) if program == "timm" else None

    def load(self, weights: Weights) -> TimmBackbone:
        encoder, layout = self.module(self), OWN_LAYOUT
        if not encoder.state_dict().keys() & weights.keys():
            layout = self.layout("timm") or layout
        encoder.load_state_dict({name: weights[layout.name(name)] for name in encoder.state_dict()})
        return encoder


@cache
def _described(config: TimmBackboneConfig, image_size: ImageSize) -> Description:
    """Describe what a backbone as it is built for its own image size makes of images of another."""
    return timm_networks.describe(config.name, config.image_size, image_size, config.arguments)


@cache
def _timm_layout(config: TimmBackboneConfig) -> Layout | None:
    """Name our weights as timm's whole network does; None where it has them not."""
    with timm_networks.without_values():
        try:
            whole, arguments = timm_networks.create_whole(
                config.name, config.image_size, config.whole.arguments | _WHOLE
            )
        except timm_networks.NetworkError:  # it has no such pooling
            return None
        encoder = TimmBackbone(config)
        ours, theirs = encoder.state_dict(), whole.state_dict()
    names = tuple(_renamed(encoder, whole))
    layout = Layout(names=names, norm=None)
    there = {name: theirs.get(layout.name(name)) for name in ours}
    if any(tensor is None or tensor.shape != ours[name].shape for name, tensor in there.items()):
        return None
    missing = theirs.keys() - {layout.name(name) for name in ours}
    norm = _whole_norm(config.whole)
    fits = norm is not None and config.num_levels is None and norm.width == config.level(config.depth).width
    prefix = norm.prefix if norm is not None and fits else None
    drawn = frozenset(name for name in missing if prefix is None or not name.startswith(prefix))

    def draw() -> Weights:
        network, _ = timm_networks.create_whole(config.name, config.image_size, config.whole.arguments | _WHOLE)
        weights: Weights = network.state_dict()
        return weights

    return Layout(
        names=names,
        norm=prefix,
        random=RandomWeights(drawn, draw),
        settings={
            "architecture": config.name,
            "num_features": whole.num_features,
            "model_args": {key: value for key, value in arguments.items() if key not in _WHOLE},
            "first_conv": whole.pretrained_cfg.get("first_conv"),
            "classifier": whole.pretrained_cfg.get("classifier"),
        },
    )


def _renamed(encoder: TimmBackbone, whole: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield prefixes of our names and of timm's: its feature networks lift what lies in a module out of it."""
    lifted = {
        f"{outer}_{inner}": f"{outer}.{inner}."
        for outer, modules in whole.named_children()
        for inner, _ in modules.named_children()
    }
    lifted |= {name: f"{name}." for name, _ in whole.named_children()}
    for where, part in (("embedding", encoder.embedding), *((f"layers.{i}", m) for i, m in enumerate(encoder.layers))):
        for name, module in part.named_children():
            if isinstance(encoder.embedding, TimmStem):
                yield f"{where}.{name}.", lifted[name]
                continue
            for inner, _ in module.named_children():  # either the whole network itself, or parts of it
                yield f"{where}.{name}.{inner}.", lifted.get(inner, "")


@dataclass(frozen=True)
class _Norm:
    """The norm behind the last level."""

    prefix: str
    width: int
    eps: float


@cache
def _whole_norm(config: TimmBackboneConfig) -> _Norm | None:
    """Return the last norm of timm's network, where that has one and its feature network has not."""
    with timm_networks.without_values():
        try:
            whole, _ = timm_networks.create_whole(config.name, config.image_size, config.arguments | _WHOLE)
        except timm_networks.NetworkError:
            return None
        encoder = TimmBackbone(config)
        ours = encoder.state_dict().keys()
    names = Layout(names=tuple(_renamed(encoder, whole)), norm=None)
    known = {names.name(name) for name in ours}
    width = config.level(config.depth).width
    norms = [
        _Norm(f"{name}.", width, module.eps)
        for name, module in whole.named_modules()
        if isinstance(module, nn.LayerNorm)
        and {name for name, _ in module.named_parameters()} == {"weight", "bias"}
        and list(module.normalized_shape) == [width]
        and f"{name}.weight" not in known
    ]
    return norms[0] if len(norms) == 1 else None
