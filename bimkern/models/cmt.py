"""CMT, a hierarchical transformer with convolutions, for methods in which all tokens pass the encoder.

Layers are its blocks, numbered over all stages; the first block of a stage merges 2 x 2 tokens before it, those of the
stem for the first stage, which belong to the embedding.

Source: Guo et al. 2022, "CMT: Convolutional Neural Networks Meet Vision Transformers", arXiv 2107.06263.

Shapes: B images, C channels, T tokens of a grid of h x w, D width, H heads, E width of a head, k side of the squares of
tokens that become a key.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimkern import pieces
from bimkern.image_size import IMAGENET_SIZE, ImageSize
from bimkern.models.attention_maps import AttentionMaps, global_maps
from bimkern.models.checks import check_counts, check_mlp_ratio, read_sizes
from bimkern.models.encoder import EncoderConfig, Grid, Layout, Level, Program, View, Weights, grid_after
from bimkern.models.layers import LayerNorm, Linear
from bimkern.models.painting import PaintedEncoder


class Convolution(nn.Conv2d):
    """A convolution whose products run in compute_dtype (by default that of its weight); its output is in that."""

    compute_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.compute_dtype or self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._conv_forward(x.to(dtype), self.weight.to(dtype), bias)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization in the dtype of its own parameters, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def _depthwise(width: int, side: int, *, stride: int = 1) -> Convolution:
    return Convolution(width, width, side, stride=stride, padding=0 if stride > 1 else side // 2, groups=width)


def _as_maps(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.mT.unflatten(2, grid)  # [B, D, h, w]


def _as_tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).mT  # [B, T, D]


class Merge(nn.Module):
    """A 2 x 2 convolution with stride 2 and a norm: "patch aggregation", section 3.1."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = Convolution(in_width, width, 2, stride=2)
        self.norm = LayerNorm(width)

    def forward(self, maps: Tensor) -> Tensor:
        tokens: Tensor = self.norm(_as_tokens(self.conv(maps)))
        return tokens


class LightAttention(nn.Module):
    """Attention to keys and values that depthwise convolutions make fewer, with a bias for every pair: section 3.3.

    The bias belongs to one grid of queries and keys; for another it is resized bicubically over both.
    """

    def __init__(self, width: int, num_heads: int, reduction: int, grid: Grid) -> None:
        super().__init__()
        self.num_heads, self.reduction, self.grid = num_heads, reduction, grid
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.proj = Linear(width, width)
        if reduction > 1:
            self.fewer_keys, self.fewer_values = (_depthwise(width, reduction, stride=reduction) for _ in range(2))
        queries = grid[0] * grid[1]
        self.bias = nn.Parameter(torch.empty(num_heads, queries, queries // reduction**2).normal_(std=0.02))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self._heads(x, grid))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias_of(grid).to(q.dtype))  # [B, H, T, E]
        attended: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return attended

    def attention_maps(self, x: Tensor, grid: Grid) -> list[AttentionMaps]:
        """Return the weights by which forward averages values, for analysis."""
        q, k, _ = self._heads(x, grid)
        return global_maps(q, k, self.bias_of(grid), self.reduction)

    def _heads(self, x: Tensor, grid: Grid) -> Iterator[Tensor]:
        """Return queries [B, T, H, E], and the fewer keys and values."""
        k, v = self.key(x), self.value(x)
        if self.reduction > 1:
            k = _as_tokens(self.fewer_keys(_as_maps(k, grid)))
            v = _as_tokens(self.fewer_values(_as_maps(v, grid)))
        return (part.unflatten(2, (self.num_heads, -1)) for part in (self.query(x), k, v))

    def bias_of(self, grid: Grid) -> Tensor:
        """Return the bias for a grid of tokens, [H, T, T / k^2]."""
        if grid == self.grid:
            return self.bias
        keys, own_keys = ([side // self.reduction for side in of] for of in (grid, self.grid))
        bias = self.bias.mT.unflatten(2, self.grid)  # [H, keys, h, w]
        bias = F.interpolate(bias, grid, mode="bicubic").flatten(2).mT  # [H, queries, keys]
        return F.interpolate(bias.unflatten(2, own_keys), keys, mode="bicubic").flatten(2)


class ConvolutionalMlp(nn.Module):
    """The inverted residual feed-forward network, section 3.4."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.norm1 = Convolution(width, inner, 1), BatchNorm(inner)
        self.spatial, self.norm2 = _depthwise(inner, 3), BatchNorm(inner)
        self.reduce, self.norm3 = Convolution(inner, width, 1), BatchNorm(width)

    def forward(self, maps: Tensor) -> Tensor:
        x = self.norm1(F.gelu(self.expand(maps)))
        x = self.norm2(F.gelu(self.spatial(x) + x))
        reduced: Tensor = self.norm3(self.reduce(x))
        return reduced


class Block(nn.Module):
    """A local perception unit, attention, feed-forward network: equations 6 to 8; before them a merge, or none."""

    def __init__(
        self, width: int, num_heads: int, reduction: int, inner: int, grid: Grid, *, in_width: int | None = None
    ) -> None:
        super().__init__()
        self.merge = None if in_width is None else Merge(in_width, width)
        self.perceive = _depthwise(width, 3)
        self.norm1 = LayerNorm(width)
        self.attn = LightAttention(width, num_heads, reduction, grid)
        self.norm2 = LayerNorm(width)
        self.mlp = ConvolutionalMlp(width, inner)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Run on the tokens of a grid; with a merge, that is the grid behind it."""
        if self.merge is not None:
            tokens = self.merge(_as_maps(tokens, (2 * grid[0], 2 * grid[1])))
        maps = _as_maps(tokens, grid)
        x = _as_tokens(maps + self.perceive(maps))
        x = x + self.attn(self.norm1(x), grid)
        return x + _as_tokens(self.mlp(_as_maps(self.norm2(x), grid)))


class CMTStem(nn.Sequential):
    """Three 3 x 3 convolutions, the first with stride 2, section 3.1, and the merge of the first stage."""

    def __init__(self, channels: int, width: int, out_width: int) -> None:
        parts: list[nn.Module] = []
        for before, stride in ((channels, 2), (width, 1), (width, 1)):
            parts += [Convolution(before, width, 3, stride=stride, padding=1), nn.GELU(), BatchNorm(width)]
        super().__init__(*parts, Merge(width, out_width))


class CMT(PaintedEncoder):
    """The encoder; masked patches can be painted over in its images. There is no final norm: heads bring their own."""

    def __init__(self, config: "CMTConfig") -> None:
        super().__init__()
        self.config = config
        self.embedding = CMTStem(config.channels, config.stem_width, config.widths[0])
        self.layers = nn.ModuleList(config.blocks())
        self.apply(_init)

    def run_layer(self, layer: int, tokens: Tensor, view: View) -> Tensor:
        found: Tensor = self.layers[layer](tokens, grid_after(self.config, layer + 1, view.grid))
        return found


def _init(module: nn.Module) -> None:
    """Initialize linear layers and convolutions; the paper does not say how."""
    if isinstance(module, Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, Convolution):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


@pieces.register(EncoderConfig)
@dataclass(frozen=True, kw_only=True)
class CMTConfig:
    """Size of a CMT; every tuple has a value for each stage.

    Source: Guo et al. 2022 (CMT), table 1.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]  # blocks
    num_heads: tuple[int, ...]
    reductions: tuple[int, ...] = (8, 4, 2, 1)  # k
    stem_width: int = 32
    mlp_ratio: float = 4.0
    image_size: ImageSize = IMAGENET_SIZE
    channels: int = 3
    module: ClassVar[type[CMT]] = CMT
    num_prefix: ClassVar[int] = 0

    def __post_init__(self) -> None:
        stages = len(self.depths)
        for name in ("widths", "depths", "num_heads", "reductions"):
            values = getattr(self, name)
            if not stages or len(values) != stages or min(values) < 1:
                raise ValueError(
                    f"CMTConfig: {name} must hold a number from 1 up for each of {stages} stages, got {values}"
                )
        check_counts(self, "stem_width", "channels")
        read_sizes(self, "image_size")
        check_mlp_ratio(self, min(self.widths))
        if any(width % heads for width, heads in zip(self.widths, self.num_heads, strict=True)):
            raise ValueError(f"CMTConfig: widths must be multiples of num_heads={self.num_heads}, got {self.widths}")
        unit = math.lcm(*(4 * 2**stage * k for stage, k in enumerate(self.reductions)))
        if not self.image_size.is_multiple(unit):
            raise ValueError(f"CMTConfig: image_size must be a multiple of {unit}, got {self.image_size}")

    @property
    def depth(self) -> int:
        return sum(self.depths)

    def stage(self, layer: int) -> int:
        """Return the stage that a layer belongs to."""
        return next(stage for stage, end in enumerate(accumulate(self.depths)) if layer < end)

    def level(self, num_layers: int) -> Level:
        stage = self.stage(max(0, num_layers - 1))
        return Level(self.widths[stage], 4 * 2**stage)

    def blocks(self) -> Iterator[Block]:
        """Build the layers."""
        for layer in range(self.depth):
            stage, level, before = self.stage(layer), self.level(layer + 1), self.level(layer)
            yield Block(
                level.width,
                self.num_heads[stage],
                self.reductions[stage],
                int(level.width * self.mlp_ratio),
                level.grid(*self.image_size),
                in_width=before.width if before.patch != level.patch else None,
            )

    def layer_group(self, name: str) -> int:
        part, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) + 1 if part == "layers" else 0

    def cut(self, depth: int) -> "CMTConfig":
        depths = [
            min(blocks, depth - end + blocks) for blocks, end in zip(self.depths, accumulate(self.depths), strict=True)
        ]
        stages = sum(blocks > 0 for blocks in depths)
        names = ("widths", "num_heads", "reductions")
        return replace(self, depths=tuple(depths[:stages]), **{name: getattr(self, name)[:stages] for name in names})

    def resized(self, image_size: ImageSize) -> "CMTConfig":
        return replace(self, image_size=image_size)

    def layout(self, program: Program) -> Layout | None:
        return None

    def load(self, weights: Weights) -> CMT:
        encoder = CMT(self)
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        return encoder


CMT_SMALL = CMTConfig(widths=(64, 128, 256, 512), depths=(3, 3, 16, 3), num_heads=(1, 2, 4, 8))  # table 1
