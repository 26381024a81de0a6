"""What frozen features tell of the classes: nearest neighbors and a linear model.

Shapes: B images, D features.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.digits.images import Digits, Indices
from bench.digits.learn import pooled
from bimkern.models.vit import ViT

_NEIGHBORS = 10
_ITERATIONS = 2000  # of the linear model's solver, at most


def features(encoder: ViT, digits: Digits) -> NDArray[np.float32]:
    """Return the pooled patch tokens of all images, [B, D]."""
    with torch.no_grad():
        found: NDArray[np.float32] = pooled(encoder, digits.images).numpy()
    return found


def knn(values: NDArray[Any], digits: Digits, train: Indices, test: Indices) -> float:
    """Return the accuracy of the majority of the nearest neighbors among standardized features [B, D]."""
    return _accuracy(KNeighborsClassifier(_NEIGHBORS), values, digits, train, test)


def linear(values: NDArray[Any], digits: Digits, train: Indices, test: Indices) -> float:
    """Return the accuracy of logistic regression on standardized features [B, D]."""
    return _accuracy(LogisticRegression(max_iter=_ITERATIONS), values, digits, train, test)


def _accuracy(model: Any, values: NDArray[Any], digits: Digits, train: Indices, test: Indices) -> float:
    fitted = make_pipeline(StandardScaler(), model).fit(values[train], digits.labels[train])
    return float(fitted.score(values[test], digits.labels[test]))
