"""Feature maps of strides 4, 8, 16 and 32 from a trained encoder, for detection and segmentation.

Shapes: B images, C channels, H W pixels, R prefix tokens, N patches, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from bimkern.models.encoder import WholeImages
from bimkern.models.layers import LayerNorm, set_compute_dtype
from bimkern.models.swin import Swin, SwinConfig
from bimkern.models.swin_layers import NORM_EPS
from bimkern.models.vit import ViT

STRIDES = (4, 8, 16, 32)

Rescale = Callable[[int, float], tuple[nn.Module, int]]  # from D and a scale: a module, and the channels it puts out


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of the channels of a map [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ViTPyramid(nn.Module):
    """Maps of a ViT, which are all of one stride, rescaled to four strides."""

    def __init__(self, encoder: ViT, taps: Sequence[int], rescale: Rescale) -> None:
        """Read the encoder after the layers taps, one for each stride.

        Its position table becomes a parameter, frozen if its class token is. Images of other sizes have resized
        positions: computed ones would lie beyond those that the layers were trained with.

        Raises:
            ValueError: a tap is no layer, or the patches are of a size from which no rescaling leads to the strides.
        """
        super().__init__()
        config = encoder.config
        if len(taps) != len(STRIDES) or list(taps) != sorted(taps) or not 0 <= taps[0] <= taps[-1] < config.depth:
            raise ValueError(
                f"pyramid: taps must be {len(STRIDES)} ascending layers in [0, {config.depth}), got {tuple(taps)}"
            )
        if config.patch not in STRIDES:
            raise ValueError(f"pyramid: patch must be one of {', '.join(map(str, STRIDES))}, got {config.patch}")
        self.encoder, self.taps = encoder, tuple(taps)
        encoder.positions.train_table(like=encoder.cls_token)
        built = [rescale(config.width, config.patch / stride) for stride in STRIDES]
        self.rescale = nn.ModuleList(module for module, _ in built)
        self.channels = tuple(channels for _, channels in built)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a map [B, channels, H / stride, W / stride] for each stride.

        Args:
            images: [B, C, H, W] floats, normalized; H and W multiples of 32.
        """
        _check_images(images)
        encoder, grid = self.encoder, self.encoder.grid(images)
        tokens, view, found = encoder.embed(images), WholeImages(grid), {}
        for layer in range(self.taps[-1] + 1):
            tokens = encoder.run_layer(layer, tokens, view)
            if layer in self.taps:
                found[layer] = _to_map(tokens[:, encoder.num_prefix :], grid)
        return [rescale(found[tap]) for tap, rescale in zip(self.taps, self.rescale, strict=True)]


class SwinPyramid(nn.Module):
    """Maps of a Swin after each of its four stages, before they are merged, each behind a new norm.

    Source: Liu et al. 2021 (Swin Transformer), section 4.2.
    """

    def __init__(self, encoder: Swin) -> None:
        """Take the encoder; layers that its run left to fine-tuning are added to it with random weights.

        Raises:
            ValueError: its stages are not of the four strides.
        """
        super().__init__()
        config = encoder.config.whole
        if config.patch != STRIDES[0] or len(config.depths) != len(STRIDES) or not config.depths[-1]:
            raise ValueError(
                f"pyramid: a Swin must have patches of {STRIDES[0]} and {len(STRIDES)} stages with layers, "
                f"got patches of {config.patch} and depths {config.depths}"
            )
        self.encoder = encoder
        if config != encoder.config:
            _add_layers(encoder, config)
        self.channels = tuple(config.width * 2**stage for stage in range(len(STRIDES)))
        self.norms = nn.ModuleList(LayerNorm(channels, NORM_EPS) for channels in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a map for each stride, as ViTPyramid does."""
        _check_images(images)
        encoder, config = self.encoder, self.encoder.config
        tokens = encoder.embed(images)
        found: list[Tensor] = []
        view = WholeImages(config.level(0).grid(*images.shape[2:]))
        for layer in range(config.depth):
            tokens = encoder.run_block(layer, tokens, view)
            if layer in config.stage_ends:
                grid = config.level(layer).grid(*images.shape[2:])
                found.append(_to_map(self.norms[len(found)](tokens), grid))
            tokens = encoder.merge_after(layer, tokens, view)
        return found


def last_map_pyramid(encoder: Any) -> ViTPyramid | SwinPyramid:
    """Build the simple feature pyramid: all maps are rescaled from the last layer's; a Swin gives its own levels.

    Raises:
        ValueError: there is no pyramid for such an encoder.

    Source: Li et al. 2022 (ViTDet), section 3.
    """
    if not isinstance(encoder, ViT):
        return _levels(encoder)
    last = encoder.config.depth - 1
    return ViTPyramid(encoder, (last,) * len(STRIDES), narrowed)


def depths_pyramid(encoder: Any, taps: Sequence[int] | None = None) -> ViTPyramid | SwinPyramid:
    """Build a pyramid whose maps are rescaled from several layers; a Swin gives its own levels.

    Args:
        encoder: a ViT or a Swin.
        taps: layers to read, counted from 0, for strides 4, 8, 16 and 32; by default (3, 5, 7, 11) of 12, and in
            proportion for other depths.

    Raises:
        ValueError: there is no pyramid for such an encoder.

    Source: He et al. 2022 (MAE), section 5, after Bao et al. 2022 (BEiT).
    """
    if not isinstance(encoder, ViT):
        return _levels(encoder)
    depth = encoder.config.depth
    default = [max(0, depth * sixths // 6 - 1) for sixths in (2, 3, 4, 6)]
    return ViTPyramid(encoder, default if taps is None else taps, kept)


def narrowed(width: int, scale: float) -> tuple[nn.Module, int]:
    """Rescale a map as ViTDet does: each deconvolution halves the channels."""
    return _rescaled(width, scale, lambda channels: channels // 2, ChannelNorm)


def kept(width: int, scale: float) -> tuple[nn.Module, int]:
    """Rescale a map as MAE does for segmentation, with all its channels."""
    return _rescaled(width, scale, lambda channels: channels, nn.BatchNorm2d)


def _rescaled(
    width: int, scale: float, narrow: Callable[[int], int], norm: Callable[[int], nn.Module]
) -> tuple[nn.Module, int]:
    if scale <= 1:
        return (nn.Identity() if scale == 1 else nn.MaxPool2d(round(1 / scale))), width
    layers: list[nn.Module] = []
    while scale > 1:
        if layers:
            layers += [norm(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, narrow(width), kernel_size=2, stride=2))
        width, scale = narrow(width), scale / 2
    return nn.Sequential(*layers), width


def _levels(encoder: Any) -> SwinPyramid:
    if not isinstance(encoder, Swin):
        raise ValueError(f"pyramid: encoder must be a ViT or a Swin, got {type(encoder).__name__}")
    return SwinPyramid(encoder)


def _add_layers(encoder: Swin, config: SwinConfig) -> None:
    """Add the layers of a config to the last stage of an encoder that lacks them: random weights, to be trained."""
    like, stage = encoder.patch_embed.proj, len(config.depths) - 1
    whole: Any = Swin(config).to(like.weight).train(encoder.training).layers[stage]
    here: Any = encoder.layers[stage]
    added = whole.blocks[len(here.blocks) :]
    if like.compute_dtype is not None:
        set_compute_dtype(added, like.compute_dtype)
    here.blocks.extend(added)
    encoder.config = config


def _check_images(images: Tensor) -> None:
    if any(size % STRIDES[-1] for size in images.shape[2:]):
        raise ValueError(
            f"pyramid: images must be [B, C, H, W] with H and W multiples of {STRIDES[-1]}, got {list(images.shape)}"
        )


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.mT.unflatten(2, grid).contiguous()
