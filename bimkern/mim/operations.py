"""Operations of stages, heads included, and the cut into stages that take equally long.

Counted are matrix products, a multiply-add as two.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from bimkern.mim.masking.view import StageView
from bimkern.mim.model import Method
from bimkern.models.encoder import CountsOperations
from bimkern.models.heads import DecoderConfig, HeadConfig
from bimkern.models.layers import cross_layer_flops, layer_flops


def prediction_flops(head: HeadConfig, width: int, out_length: int, weights: Tensor) -> int:
    """Count what makes predictions of a head's features, `width` wide, for tokens with loss weights [1, N]."""
    num_tokens = weights.shape[1]
    if not isinstance(head, DecoderConfig) or head.match_scale is None:
        return 2 * num_tokens * width * out_length
    if head.scale < 1:
        return 2 * int(num_tokens * head.scale**2) * width * out_length
    num_masked = int(weights.count_nonzero())
    deconvolved = {1: 0, 2: 4 * width**2, 4: 8 * width**2}[int(head.scale)]
    return num_masked * (deconvolved + 2 * int(head.scale) * width * out_length)


def head_flops(method: Method, stage: int, view: StageView) -> int:
    """Count the forward pass of a head, from the tokens of its stage to its predictions."""
    encoder, head, level = method.encoder, method.head(stage), method.level(stage)
    out_length = method.target(stage).length(encoder.channels, level.patch, head.scale)
    weights = view.weights(method.grid(stage, view.grid))
    if not isinstance(head, DecoderConfig):
        return prediction_flops(head, level.width, out_length, weights)
    num_tokens = weights.shape[1]
    shown = num_tokens if view.decoded is None else view.decoded.shape[1]
    context = shown + encoder.num_prefix
    entry, inner = 2 * context * level.width * head.width, int(head.width * head.mlp_ratio)
    if view.chosen is None:
        layer = layer_flops(num_tokens + encoder.num_prefix, head.width, inner)
        return entry + head.depth * layer + prediction_flops(head, head.width, out_length, weights)
    chosen = view.chosen.shape[1]
    if head.attends == "all":
        tokens = num_tokens + encoder.num_prefix if head.skips_visible else context + chosen
        layers = (head.depth - 1) * layer_flops(tokens, head.width, inner) if head.depth else 0
        layers += cross_layer_flops(chosen, tokens, head.width, inner) if head.depth else 0
    else:
        layers = head.depth * cross_layer_flops(chosen, context, head.width, inner)
    predicted = weights if head.match_scale is not None else weights[:, :chosen]
    return entry + layers + prediction_flops(head, head.width, out_length, predicted)


def stage_flops(method: Method, stage: int) -> int:
    """Count the operations of one image in one step of a stage that learns alone: its layers and its head.

    Raises:
        ValueError: the encoder does not count its operations.
    """
    encoder, (first, tap) = method.encoder, (method.taps[stage - 1] + 1 if stage else 0, method.taps[stage])
    if not isinstance(encoder, CountsOperations):
        raise ValueError(f"{type(encoder).__name__} has no embedding_flops() and layer_flops()")
    grid = encoder.level(0).grid(*encoder.image_size)
    views = method.views(torch.zeros(1, dtype=torch.int64), grid, seed=0)
    entering = method.masker.entering(grid, len(method.taps))[stage]
    embedding = 0 if stage else 2 * encoder.embedding_flops(views[0].keep.shape[1])
    layers = sum(encoder.layer_flops(layer, entering) for layer in range(first, tap + 1))
    return embedding + 3 * (layers + head_flops(method, stage, views[stage]))


def balanced_taps(method: Method, num_stages: int) -> tuple[int, ...]:
    """Return the taps that cut an encoder into stages of which the one that takes longest takes as little as can be.

    Raises:
        ValueError: there are fewer layers, or pieces for another number of stages, or nothing counts the operations.
    """

    def cost(stage: int, first: int, tap: int) -> int:
        taps = (*range(stage - 1), *([first - 1] if stage else []), tap, *range(depth - num_stages + stage + 1, depth))
        return stage_flops(replace(method, taps=taps), stage)

    depth = method.encoder.depth
    if num_stages > depth:
        raise ValueError(f"{depth} layers cannot be cut into {num_stages} stages")
    return cut(depth, num_stages, cost)


def cut(depth: int, num_stages: int, cost: Callable[[int, int, int], int]) -> tuple[int, ...]:
    """Return the last layers of the stages whose largest cost is the lowest; of equal ones, the earlier.

    Args:
        depth: number of layers, at least one for every stage.
        num_stages: number of stages.
        cost: of stage k from its first layer up to its last.
    """

    @cache
    def best(stage: int, first: int) -> tuple[int, tuple[int, ...]]:
        if stage == num_stages - 1:
            return cost(stage, first, depth - 1), (depth - 1,)
        found = []
        for tap in range(first, depth - num_stages + stage + 1):
            highest, taps = best(stage + 1, tap + 1)
            found.append((max(cost(stage, first, tap), highest), (tap, *taps)))
        return min(found)

    return best(0, 0)[1]
