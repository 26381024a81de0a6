"""What the features of a backbone are worth at every depth: one forward pass, then neighbors and a linear probe.

Shapes: B images, D width after a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bimkern.evaluate.backbone import Backbone, Pool
from bimkern.evaluate.labeled import Labeled, Part
from bimkern.evaluate.latency import latencies
from bimkern.evaluate.linear import LinearProbe
from bimkern.evaluate.neighbors import knn_accuracies


@dataclass(frozen=True, kw_only=True)
class DepthResult:
    """What a backbone of some layers costs, and how much of the test images a classifier on it gets right."""

    depth: int
    parameters: int
    latency_ms: float  # of one image
    knn: dict[int, float]  # by the number of neighbors
    linear: float
    chance: float  # of always naming the most frequent class


def evaluate(
    backbone: Backbone,
    data: Labeled,
    depths: Sequence[int],
    *,
    pool: Pool = "mean",
    neighbors: Sequence[int] = (20,),
    probe: LinearProbe | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
    seed: int = 0,
) -> list[DepthResult]:
    """Evaluate a backbone at some depths.

    The features of all images are kept: 4 bytes for each image, depth and feature.

    Raises:
        EvaluationError: an image cannot be read, there are fewer training images than neighbors, or the encoder has no
            class token to pool by.
    """
    device, probe = device or torch.device("cpu"), probe or LinearProbe()
    backbone.to(device)
    train = cached_features(backbone, data.train, depths, pool, batch_size, device)
    test = cached_features(backbone, data.test, depths, pool, batch_size, device)
    train_labels, test_labels = data.train.labels.to(device), data.test.labels.to(device)
    times = latencies(backbone, depths, pool)
    found = []
    for depth in depths:
        sets = train.pop(depth), train_labels, test.pop(depth), test_labels
        found.append(
            DepthResult(
                depth=depth,
                parameters=backbone.count_parameters(depth),
                latency_ms=times[depth],
                knn=knn_accuracies(*sets, neighbors),
                linear=probe.accuracy(*sets, seed=seed),
                chance=data.chance,
            )
        )
    return found


def cached_features(
    backbone: Backbone, part: Part, depths: Sequence[int], pool: Pool, batch_size: int, device: torch.device
) -> dict[int, Tensor]:
    """Return the features of all images of a part at each depth, [B, D] float32."""
    found: dict[int, list[Tensor]] = {depth: [] for depth in depths}
    for images in part.batches(batch_size, backbone.images, backbone.config.channels):
        for depth, features in backbone.features(images.to(device), depths, pool).items():
            found[depth].append(features)
    return {depth: torch.cat(features) for depth, features in found.items()}
