"""What the features of a backbone are worth at every depth: one forward pass, then neighbors and a linear probe.

Shapes: B images, D width after a layer.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bimkern.data.images import Images
from bimkern.evaluate.backbone import Backbone, Pool
from bimkern.evaluate.checked_images import random_crops
from bimkern.evaluate.errors import EvaluationError, ProbeDiverged, check_finite
from bimkern.evaluate.labeled import Labeled, Part
from bimkern.evaluate.latency import latencies
from bimkern.evaluate.linear import LinearProbe
from bimkern.evaluate.neighbors import check_neighbors, knn_accuracies


@dataclass(frozen=True, kw_only=True)
class DepthResult:
    """What a backbone of some layers costs, and how much of the test images a classifier on it gets right."""

    depth: int
    parameters: int
    latency_ms: float  # of one image
    knn: dict[int, float]  # by the number of neighbors
    linear: float  # NaN where the classifier diverged
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
    crops: int = 0,
) -> list[DepthResult]:
    """Evaluate a backbone at some depths.

    The features of all images are kept: 4 bytes for each image, depth and feature; those of crops too.

    Args:
        backbone: the encoder.
        data: images to learn from and to test on.
        depths: numbers of layers.
        pool: how the tokens of an image become its features.
        neighbors: numbers of neighbors that vote.
        probe: how the linear classifier is trained.
        batch_size: images per forward pass.
        device: of the computation; None: the CPU.
        seed: of the linear classifier and the crops.
        crops: random crops of every training image that the linear classifier learns from; 0: the central one.

    Raises:
        EvaluationError: an image cannot be read, there are fewer training images than neighbors, the encoder has no
            class token to pool by, the images are no files to take crops of, or features are not finite.
        LoadingFailed: no image can be read any more.
    """
    device, probe = device or torch.device("cpu"), probe or LinearProbe()
    for k in neighbors:
        check_neighbors(k, len(data.train))  # before the features, which take long
    if crops:
        _files(data.train)
    backbone.to(device)
    train = cached_features(backbone, data.train, depths, pool, batch_size, device)
    test = cached_features(backbone, data.test, depths, pool, batch_size, device)
    train_labels, test_labels = data.train.labels.to(device), data.test.labels.to(device)
    cropped, labels = dict[int, Tensor](), train_labels
    if crops:
        cropped, labels = crop_features(backbone, data.train, depths, pool, batch_size, device, crops=crops, seed=seed)
    times = latencies(backbone, depths, pool)
    found = []
    for depth in depths:
        whole, tested = train.pop(depth), (test.pop(depth), test_labels)
        learned = cropped.pop(depth, whole)
        found.append(
            DepthResult(
                depth=depth,
                parameters=backbone.count_parameters(depth),
                latency_ms=times[depth],
                knn=knn_accuracies(whole, train_labels, *tested, neighbors),
                linear=_linear(probe, learned, labels, *tested, seed=seed, crops=max(1, crops)),
                chance=data.chance,
            )
        )
    return found


def _linear(probe: LinearProbe, *tensors: Tensor, seed: int, crops: int) -> float:
    """Return the accuracy of a linear classifier; NaN if it diverges, which those of other depths need not do."""
    try:
        return probe.accuracy(*tensors, seed=seed, crops=crops)
    except ProbeDiverged:
        return math.nan


def cached_features(
    backbone: Backbone, part: Part, depths: Sequence[int], pool: Pool, batch_size: int, device: torch.device
) -> dict[int, Tensor]:
    """Return the features of all images of a part at each depth, [B, D] float32."""
    images = part.batches(batch_size, backbone.images, backbone.config.channels)
    return _features(backbone, images, depths, pool, device)


def crop_features(
    backbone: Backbone,
    part: Part,
    depths: Sequence[int],
    pool: Pool,
    batch_size: int,
    device: torch.device,
    *,
    crops: int,
    seed: int,
) -> tuple[dict[int, Tensor], Tensor]:
    """Return the features of random crops of a part at each depth, [crops * B, D] float32, and their labels.

    Raises:
        EvaluationError: the images are no files.
    """
    shown = random_crops(_files(part), backbone.images, epochs=crops, batch_size=batch_size, seed=seed)
    labels = []

    def images() -> Iterator[Tensor]:
        for pixels, indices in shown:
            labels.append(part.labels[indices])
            yield pixels

    return _features(backbone, images(), depths, pool, device), torch.cat(labels).to(device)


def _files(part: Part) -> Images:
    if part.images is None:
        raise EvaluationError("--crops needs --data: the digits are no files, and too small to be cropped")
    return part.images


def _features(
    backbone: Backbone, batches: Iterable[Tensor], depths: Sequence[int], pool: Pool, device: torch.device
) -> dict[int, Tensor]:
    found: dict[int, list[Tensor]] = {depth: [] for depth in depths}
    for images in batches:
        for depth, features in backbone.features(images.to(device), depths, pool).items():
            found[depth].append(features)
    whole = {depth: torch.cat(found.pop(depth)) for depth in list(found)}
    for depth, features in whole.items():
        check_finite(features, f" behind layer {depth}")
    return whole
