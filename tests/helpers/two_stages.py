"""A second encoder: two stages of convolutions, the second one wider and on a grid of half as many rows and columns.

Shapes: B images, C channels, T tokens of a grid of h x w, D width.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from bimkern import pieces
from bimkern.image_size import ImageSize
from bimkern.models.encoder import EncoderConfig, Level
from bimkern.models.layers import LayerNorm, Linear

_SIZE = ImageSize.square(32)


class Mixer(nn.Module):
    """A depthwise convolution and a small MLP; before them, where it merges, a projection of 2 x 2 tokens."""

    def __init__(self, in_width, width, *, merges):
        super().__init__()
        self.merge = nn.Conv2d(in_width, width, 2, stride=2) if merges else None
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = LayerNorm(width)
        self.fc1, self.fc2 = Linear(width, 2 * width), Linear(2 * width, width)

    def forward(self, tokens, grid):  # [B, T, D]
        x = tokens.mT.unflatten(2, grid)  # [B, D, h, w]
        if self.merge is not None:
            x = self.merge(x)
        x = (x + self.spatial(x)).flatten(2).mT
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class TwoStages(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        levels = [config.level(i) for i in range(config.depth + 1)]
        self.layers = nn.ModuleList(
            Mixer(before.width, after.width, merges=before.patch != after.patch) for before, after in pairwise(levels)
        )

    def embed(self, images, mean=None, std=None):
        if mean is not None:
            images = (images.to(mean.dtype) / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return self.patch_embed(images).flatten(2).mT

    def embed_filled(self, images, view, token, mean, std):
        return torch.where(view.masked[..., None] > 0, token, self.embed(images, mean, std))

    def embed_painted(self, images, view, color, mean, std):
        pixels = (images.to(mean.dtype) / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        masked = F.interpolate(view.masked.unflatten(1, (1, *view.grid)), images.shape[2:])
        return self.embed(torch.where(masked > 0, color, pixels))

    def run_layer(self, layer, tokens, view):
        merged = self.config.level(layer).patch // self.config.patch
        return self.layers[layer](tokens, (view.grid[0] // merged, view.grid[1] // merged))


@pieces.register(EncoderConfig)
@dataclass(frozen=True, kw_only=True)
class TwoStagesConfig:
    width: int = 16
    stage_depths: tuple[int, int] = (2, 2)
    patch: int = 4
    image_size: ImageSize = _SIZE
    channels: int = 3
    module: ClassVar = TwoStages
    num_prefix: ClassVar[int] = 0

    @property
    def depth(self):
        return sum(self.stage_depths)

    def level(self, num_layers):
        second = num_layers > self.stage_depths[0]
        return Level(self.width * (2 if second else 1), self.patch * (2 if second else 1))

    def layer_group(self, name):
        part, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) + 1 if part == "layers" else 0

    def cut(self, depth):
        first = min(depth, self.stage_depths[0])
        return replace(self, stage_depths=(first, depth - first))

    def resized(self, image_size):
        image_size = ImageSize.read(image_size)
        if not image_size.is_multiple(2 * self.patch):
            raise ValueError(f"TwoStagesConfig: image_size must be a multiple of {2 * self.patch}, got {image_size}")
        return replace(self, image_size=image_size)

    def embedding_flops(self, num_visible):
        return 2 * (self.image_size.height // self.patch) ** 2 * self.width * self.channels * self.patch**2

    def layer_flops(self, layer, num_patches):
        before, after = self.level(layer), self.level(layer + 1)
        tokens = num_patches * self.patch**2 // after.patch**2
        merge = 4 * before.width * after.width if before.patch != after.patch else 0
        return 2 * tokens * (merge + 9 * after.width + 4 * after.width**2)

    def layout(self, program):
        return None

    def load(self, weights):
        encoder = TwoStages(self)
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        return encoder
