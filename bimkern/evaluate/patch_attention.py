"""The attention among image patches in the layers of an encoder, and how far apart the patches are.

Shapes: B images, W windows, H heads, Q queries and K keys of a window, R prefix tokens.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bimkern.evaluate.attention_measures import without_prefix
from bimkern.evaluate.errors import EvaluationError
from bimkern.models.attention_maps import AttentionMaps, GivesAttentionMaps
from bimkern.models.encoder import EncoderConfig, Grid


@dataclass(frozen=True)
class PatchAttention:
    """The attention in windows of one size."""

    weights: Tensor  # [B, W, H, Q, K] float32; rows sum to one
    distances: Tensor  # [W, Q, K] float32, pixels of the image between the centers of query and key
    layout: Hashable  # equal where the same queries attend to the same keys

    def averaged(self) -> "PatchAttention":
        """Return the mean over heads, as one head."""
        return replace(self, weights=self.weights.mean(dim=2, keepdim=True))


@contextmanager
def capture(encoder: nn.Module) -> Iterator[list[Sequence[AttentionMaps]]]:
    """Collect the maps of every attention module that runs, in a list to empty as one likes."""
    found: list[Sequence[AttentionMaps]] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(module.attention_maps(*args, **kwargs)), with_kwargs=True
        )
        for module in encoder.modules()
        if isinstance(module, GivesAttentionMaps)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def among_patches(
    captured: Sequence[Sequence[AttentionMaps]], config: EncoderConfig, layer: int, image: tuple[int, int]
) -> list[PatchAttention]:
    """Return the attention of a layer without prefix tokens, for each size of window.

    Args:
        captured: what capture collected in the layer.
        config: of the encoder.
        layer: counted from 0.
        image: rows and columns of pixels.

    Raises:
        EvaluationError: there is not one attention module in it.
    """
    if len(captured) != 1:
        raise EvaluationError(
            f"{type(config).__name__}: layer {layer + 1} must hold one module with attention_maps, got "
            f"{len(captured)}; attention of ViT, Swin and CMT can be analyzed"
        )
    prefix = config.num_prefix
    num_patches = sum(maps.queries.numel() for maps in captured[0]) - prefix
    grid, patch = _level(config, layer, image, num_patches)
    found = []
    for maps in captured[0]:
        queries, keys = (tokens[:, prefix:] - prefix for tokens in (maps.queries, maps.keys))
        centers = _centers(queries, grid, 1), _centers(keys, grid, maps.key_side)
        layout = (maps.key_side, *(tuple(tokens.flatten().tolist()) for tokens in (queries, keys)))
        found.append(PatchAttention(without_prefix(maps.weights, prefix), torch.cdist(*centers) * patch, layout))
    return found


def _level(config: EncoderConfig, layer: int, image: tuple[int, int], num_patches: int) -> tuple[Grid, int]:
    """Return the grid on which a layer attends, and the pixels a side of its patches.

    A layer that merges patches attends before it, as in Swin, or behind it, as in CMT.
    """
    for level in (config.level(layer), config.level(layer + 1)):
        grid = level.grid(*image)
        if grid[0] * grid[1] == num_patches:
            return grid, level.patch
    raise EvaluationError(
        f"{type(config).__name__}: attention_maps of layer {layer + 1} must be of all patches, got {num_patches}"
    )


def _centers(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    """Return row and column of the centers of squares of side x side patches, [..., 2] float32, in patches."""
    columns = grid[1] // side
    return torch.stack([tokens // columns, tokens % columns], dim=-1).float() * side + (side - 1) / 2
