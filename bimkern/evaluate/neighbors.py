"""Exact nearest neighbors by cosine similarity, in blocks, so that memory is independent of the number of images.

Shapes: M training images, N test images, D features, K neighbors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bimkern.evaluate.errors import EvaluationError
from bimkern.models.product import multiply

TEMPERATURE = 0.07
_ROWS, _COLUMNS = 1024, 16384  # of a block of similarities: 64 MiB


def nearest(train: Tensor, test: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Find the training images most similar to each test image.

    Args:
        train: [M, D] float.
        test: [N, D] float.
        num_neighbors: K, in [1, M].

    Returns:
        Cosine similarities [N, K], the largest first, and indices [N, K] into train.

    Raises:
        EvaluationError: K is out of range.
    """
    check_neighbors(num_neighbors, len(train))
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    found = [_nearest_of_block(train, block, num_neighbors) for block in test.split(_ROWS)]
    similarities, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return similarities, indices


def check_neighbors(num_neighbors: int, num_train: int) -> None:
    """Make sure that so many neighbors can be found among the training images.

    Raises:
        EvaluationError: they cannot.
    """
    if not 1 <= num_neighbors <= num_train:
        raise EvaluationError(
            f"neighbors must be in [1, {num_train}], the number of training images, got {num_neighbors}; lower --k"
        )


def _nearest_of_block(train: Tensor, test: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    best, indices = test.new_empty(len(test), 0), torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for first in range(0, len(train), _COLUMNS):
        block = train[first : first + _COLUMNS]
        values, where = multiply(test, block, None, None).topk(min(num_neighbors, len(block)), dim=1)
        best, indices = torch.cat([best, values], dim=1), torch.cat([indices, where + first], dim=1)
        best, order = best.topk(min(num_neighbors, best.shape[1]), dim=1)
        indices = indices.gather(1, order)
    return best, indices


def knn_accuracies(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    neighbors: Sequence[int],
    temperature: float | None = TEMPERATURE,
) -> dict[int, float]:
    """Classify test images by votes of their nearest training images; one search serves several K.

    Args:
        train: [M, D] float.
        train_labels: [M] int64, likewise test_labels [N].
        test: [N, D] float.
        neighbors: each K, in [1, M].
        temperature: a vote weighs exp(similarity / temperature); None: all weigh the same. The lowest class wins a tie.

    Returns:
        The share of test images that are classified correctly, for each K.

    Raises:
        EvaluationError: a K is out of range.

    Source: Wu et al. 2018 "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", equation 7.
    """
    similarities, indices = nearest(train, test, max(neighbors))
    labels = train_labels[indices]  # [N, K]
    weights = torch.ones_like(similarities) if temperature is None else (similarities / temperature).exp()
    num_classes, right = int(train_labels.max()) + 1, dict.fromkeys(neighbors, 0)
    for blocks in zip(*(values.split(_ROWS) for values in (labels, weights, test_labels)), strict=True):
        near, weight, truth = blocks
        for k in right:
            votes = weight.new_zeros(len(near), num_classes).scatter_add_(1, near[:, :k], weight[:, :k])
            right[k] += int((votes.argmax(dim=1) == truth).sum())
    return {k: number / len(test) for k, number in right.items()}
