"""Trained encoders measured layer by layer, their attention and their features, over batches of images.

One layer's attention maps are held at a time; of a batch, their means over heads and the Gram matrices of features.

Shapes: B images, W windows, H heads, Q queries and K keys of a window, L layers, R prefix tokens, N patches, D width.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from bimkern.evaluate.attention_measures import (
    attention_distance,
    attention_entropy,
    kl_divergence,
    normalized_mutual_information,
)
from bimkern.evaluate.backbone import Backbone
from bimkern.evaluate.cka import MIN_IMAGES, MinibatchCKA, centered_gram
from bimkern.evaluate.errors import EvaluationError, check_finite
from bimkern.evaluate.labeled import Unlabeled
from bimkern.evaluate.patch_attention import PatchAttention, among_patches, capture

MIN_BATCH = 2 * MIN_IMAGES  # images then split into batches of at least MIN_IMAGES


@dataclass(frozen=True, kw_only=True)
class LayerAttention:
    """How a layer attends, by head, and how alike other layers are; NaN where a measure is undefined."""

    layer: int  # from 1
    distance_px: tuple[float, ...]
    entropy_nats: tuple[float, ...]
    nmi: tuple[float, ...]
    kl_heads_nats: tuple[float, ...]  # from a head to the others, on average
    kl_layers_nats: tuple[float, ...]  # from this layer to each, of weights that are averaged over heads
    cka: Mapping[str, tuple[float, ...]]  # by run: with the features behind each of its layers


def analyze(
    backbones: Mapping[str, Backbone],
    images: Unlabeled,
    *,
    num_images: int = 256,
    batch_size: int = 64,
    device: torch.device | None = None,
) -> dict[str, list[LayerAttention]]:
    """Measure every layer of some encoders on the same images.

    All measures are of patches: prefix tokens are left out of the features, and of the attention as without_prefix
    does. Each is a mean over images and queries; NMI is that of a window, averaged by its number of queries. Features
    are the tokens [B, N * D] that a layer puts out, without a norm.

    Args:
        backbones: by the name of the run.
        images: read as each encoder takes them.
        num_images: at most so many, spread evenly over those there are.
        batch_size: images of a forward pass, at least 8.
        device: where to compute; the CPU by default.

    Raises:
        EvaluationError: there are fewer than 4 images, one cannot be read, or a layer of an encoder has no attention or
            puts out what is not finite.
    """
    assert batch_size >= MIN_BATCH
    device, used = device or torch.device("cpu"), min(num_images, images.count)
    if used < MIN_IMAGES:
        raise EvaluationError(f"images must be at least {MIN_IMAGES}, for CKA, got {used}")
    chosen = [i * images.count // used for i in range(used)]
    runs = {run: _Measured(run, backbone.to(device)) for run, backbone in backbones.items()}
    cka, num_batches = MinibatchCKA(), -(-used // batch_size)
    for number in range(num_batches):
        batch = chosen[number * used // num_batches : (number + 1) * used // num_batches]
        grams = [
            run.add(images.read(batch, run.backbone.images, run.backbone.config.channels).to(device))
            for run in runs.values()
        ]
        cka.add(list(chain.from_iterable(grams)))
    depths = [run.backbone.config.depth for run in runs.values()]
    of_runs = cka.result().cpu().split(depths)  # [L, all layers] each
    return {
        name: [
            run.result(layer, {other: tuple(row.tolist()) for other, row in zip(runs, rows.split(depths), strict=True)})
            for layer, rows in enumerate(own)
        ]
        for (name, run), own in zip(runs.items(), of_runs, strict=True)
    }


class _Mean:
    """A weighted mean over the first dimension, in which NaN counts for nothing; NaN where there is nothing else."""

    def __init__(self) -> None:
        self._total: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    def add(self, values: Tensor, weight: int) -> None:
        known = ~values.isnan()
        self._total = self._total + torch.where(known, values, 0).double().sum(dim=0) * weight
        self._weight = self._weight + known.sum(dim=0) * weight

    def result(self) -> Tensor:
        return torch.as_tensor(self._total) / self._weight


class _Measured:
    """The measures of an encoder, so far."""

    def __init__(self, run: str, backbone: Backbone) -> None:
        self._run, self.backbone = run, backbone
        self._by_head = [defaultdict[str, _Mean](_Mean) for _ in range(backbone.config.depth)]
        self._kl_layers = _Mean()

    @torch.no_grad()
    def add(self, images: Tensor) -> list[Tensor]:
        """Measure a batch [B, C, H, W] uint8; return the centered Gram matrix [B, B] of the features of each layer."""
        config, grams = self.backbone.config, []
        averaged: list[list[PatchAttention]] = []
        with capture(self.backbone.encoder) as captured:
            for layer, tokens in enumerate(self.backbone.run(images, config.depth)):
                check_finite(tokens, f" behind layer {layer + 1} of {self._run}")  # NaN would count for nothing
                attention = among_patches(captured, config, layer, (images.shape[2], images.shape[3]))
                captured.clear()
                for one in attention:
                    self._add_heads(layer, one)
                averaged.append([one.averaged() for one in attention])
                grams.append(centered_gram(tokens[:, config.num_prefix :].flatten(1).float()))
        self._add_layers(averaged)
        return grams

    def _add_heads(self, layer: int, attention: PatchAttention) -> None:
        weights = attention.weights
        num_heads, num_queries = weights.shape[2:4]
        for name, values in (  # [B, W, H]
            ("distance_px", attention_distance(weights, attention.distances.unsqueeze(1))),
            ("entropy_nats", attention_entropy(weights)),
            ("nmi", normalized_mutual_information(weights)),
            ("kl_heads_nats", kl_divergence(weights).sum(dim=-1) / (num_heads - 1 or torch.nan)),
        ):
            self._by_head[layer][name].add(values.flatten(0, 1), num_queries)

    def _add_layers(self, averaged: Sequence[Sequence[PatchAttention]]) -> None:
        """Compare the layers in which the same queries attend to the same keys."""
        alike = defaultdict[Hashable, list[int]](list)
        for layer, attention in enumerate(averaged):
            alike[tuple(one.layout for one in attention)].append(layer)
        for layers in alike.values():
            for windows in zip(*(averaged[layer] for layer in layers), strict=True):
                weights = torch.cat([one.weights for one in windows], dim=2)  # [B, W, L, Q, K]
                divergences = weights.new_full((*weights.shape[:2], len(averaged), len(averaged)), torch.nan)
                index = torch.tensor(layers, device=weights.device)
                divergences[:, :, index[:, None], index] = kl_divergence(weights)
                self._kl_layers.add(divergences.flatten(0, 1), weights.shape[3])

    def result(self, layer: int, cka: Mapping[str, tuple[float, ...]]) -> LayerAttention:
        by_head = {name: tuple(mean.result().tolist()) for name, mean in self._by_head[layer].items()}
        kl_layers = tuple(self._kl_layers.result()[layer].tolist())
        return LayerAttention(layer=layer + 1, **by_head, kl_layers_nats=kl_layers, cka=cka)
