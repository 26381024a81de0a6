"""Linear centered kernel alignment (CKA): how alike the features of layers are, up to rotation and scale.

It is estimated batch by batch, so that memory is independent of the number of images.

Shapes: B images of a batch, D features, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_IMAGES = 4  # of a batch: the estimate divides by B (B - 3)


def centered_gram(features: Tensor) -> Tensor:
    """Return the U-centered linear Gram matrix of a batch.

    With G = X X^T: G[i, j] - sum of row i / (B - 2) - sum of column j / (B - 2) + sum of all / ((B - 1)(B - 2)), where
    the diagonal of G is left out of all sums; 0 on the diagonal.

    Args:
        features: [B, D] float, X; B at least 4.

    Returns:
        [B, B] float64.

    Source: Szekely and Rizzo 2014 "Partial distance correlation with methods for dissimilarities", U-centering.
    """
    count = len(features)
    assert count >= MIN_IMAGES
    shifted = features - features[0]  # exactly 0 where all images have the same, unlike from their rounded mean
    shifted = shifted - shifted.mean(dim=0)  # both change nothing but the rounding
    gram = (shifted @ shifted.T).double().fill_diagonal_(0)
    sums = gram.sum(dim=1)
    gram = gram - (sums[:, None] + sums[None, :]) / (count - 2) + sums.sum() / ((count - 1) * (count - 2))
    return gram.fill_diagonal_(0)


class MinibatchCKA:
    """CKA of every pair of layers: HSIC(K, M) / sqrt(HSIC(K, K) HSIC(M, M)), each HSIC averaged over batches.

    HSIC is the unbiased estimate, for which <K, M> / (B (B - 3)) of the U-centered Gram matrices is another form. It is
    the same for rotated or scaled features; 1 for equal ones; about 0, on either side, for independent ones.

    Source: Kornblith et al. 2019 "Similarity of Neural Network Representations Revisited", section 3; Nguyen et al.
    2021 "Do Wide and Deep Networks Learn the Same Things?", for batches, as Raghu et al. 2021 use it.
    """

    def __init__(self) -> None:
        self._hsic: Tensor | None = None  # [L, L], a sum over batches

    def add(self, grams: Sequence[Tensor]) -> None:
        """Add a batch: the centered Gram matrix [B, B] of each layer, of the same images."""
        flat = torch.stack(list(grams)).flatten(1)
        count = grams[0].shape[0]
        hsic = flat @ flat.T / (count * (count - 3))
        self._hsic = hsic if self._hsic is None else self._hsic + hsic

    def result(self) -> Tensor:
        """Return the CKA of every pair, [L, L] float64; NaN for a layer that puts out the same for all images."""
        assert self._hsic is not None, "there is no batch"
        scale = self._hsic.diagonal().sqrt()
        return self._hsic / (scale[:, None] * scale[None, :])
