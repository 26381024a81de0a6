"""Attention weights for analysis: what a layer's fused attention never stores, computed again beside it.

A module that attends offers them by a method `attention_maps`, with the arguments of its forward (GivesAttentionMaps).

Shapes: B images, W windows, H heads, Q queries and K keys of a window, T tokens, E width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bimkern.ops import WindowGroups


@dataclass(frozen=True)
class AttentionMaps:
    """The weights of windows of one size; attention over all tokens is a single window."""

    weights: Tensor
    """[B, W, H, Q, K] float32: softmax over the keys, so that rows sum to one."""
    queries: Tensor
    """[W, Q] int64, the token of each query: prefix tokens first, then patches in raster order."""
    keys: Tensor
    """[W, K] int64, likewise; with a key_side, on the grid of squares."""
    key_side: int = 1
    """Tokens a side of the square that a key stands for."""


@runtime_checkable
class GivesAttentionMaps(Protocol):
    """A module that attends."""

    def attention_maps(self, *inputs: Any) -> Sequence[AttentionMaps]:
        """Return the weights by which forward averages values, for the same inputs; for each size of window."""


def global_maps(q: Tensor, k: Tensor, bias: Tensor | None = None, key_side: int = 1) -> list[AttentionMaps]:
    """Return softmax(q k^T / sqrt(E) + bias), of attention over all tokens.

    Args:
        q, k: [B, T, H, E]; k may hold fewer tokens.
        bias: [H, Q, K].
        key_side: tokens a side of the square that a key stands for.

    Source: Vaswani et al. 2017, equation 1.
    """
    logits = torch.einsum("bqhe,bkhe->bhqk", q.float(), k.float()) * q.shape[-1] ** -0.5
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    queries, keys = (torch.arange(x.shape[1], device=q.device).unsqueeze(0) for x in (q, k))
    return [AttentionMaps(weights.unsqueeze(1), queries, keys, key_side)]


def window_maps(q: Tensor, k: Tensor, table: Tensor, groups: WindowGroups) -> list[AttentionMaps]:
    """Return softmax(q k^T / sqrt(E) + bias) within windows, for each number of tokens that a window has.

    Args:
        q, k: [B, T, H, E].
        table: [R, H], biases of relative positions, as group_attention takes them.
        groups: windows that all images share (S = 1).

    Source: Liu et al. 2021 (Swin Transformer), equation 4.
    """
    assert len(groups.windows) == 1, "whole images share their windows"
    _, counts = groups.windows[0].unique(return_counts=True)  # [W], in the order of the windows
    by_window = groups.windows[0].argsort(stable=True).split(counts.tolist())
    found = []
    for size in sorted(set(counts.tolist())):
        tokens = torch.stack([window for window in by_window if len(window) == size])  # [W, Q]
        positions = groups.positions[0][tokens].long()
        bias = table[positions[:, :, None] - positions[:, None, :] + len(table) // 2]  # [W, Q, K, H]
        logits = torch.einsum("bwqhe,bwkhe->bwhqk", q[:, tokens].float(), k[:, tokens].float())
        weights = (logits * q.shape[-1] ** -0.5 + bias.movedim(-1, 1)).softmax(dim=-1)
        found.append(AttentionMaps(weights, tokens, tokens))
    return found
