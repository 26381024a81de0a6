"""`python -m bench.probes`: the classifiers of a probe on cached features, against scikit-learn's, in turns.

It counts the CPU time of the process, so that other work on the machine does not matter. The matrix product of nearest
neighbors is timed alone, too. scikit-learn's logistic regression is another classifier than MAE's linear probe: it is
regularized, and stops where its loss no longer falls.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from bimkern.evaluate.linear import LinearProbe
from bimkern.evaluate.neighbors import knn_accuracies
from bimkern.models.product import multiply

_TRAIN, _TEST, _CLASSES, _NEIGHBORS, _ROUNDS = 8000, 2000, 100, 20, 7
_WIDTHS = (192, 384, 768)  # of ViT-Ti, S and B
_STEPS = 90  # of the linear probe: MAE's epochs, each of one batch

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # as knn_accuracies takes them
Classifier = Callable[..., float | None]


def main() -> None:
    for title, providers in (("kNN", _NEAREST), (f"linear, {_STEPS} steps", _LINEAR)):
        for width in _WIDTHS:
            compare(f"{title}, {_TRAIN} + {_TEST} features of width {width}", providers, _sample(width))


def compare(title: str, providers: Mapping[str, Classifier], data: Data) -> None:
    """Time classifiers in turns, and print medians and accuracies."""
    times = {name: list[float]() for name in providers}
    accuracies = {name: run(*data) for name, run in providers.items()}
    for _ in range(_ROUNDS):
        for name, run in providers.items():
            began = time.process_time()
            run(*data)
            times[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    shown = {name: "" if accuracy is None else f" ({accuracy:.1%})" for name, accuracy in accuracies.items()}
    text = ", ".join(f"{name} {1e3 * medians[name]:.0f} ms{shown[name]}" for name in providers)
    print(f"{title}: {text}, {medians['scikit-learn'] / medians['ours']:.2f}x")


def _sample(width: int) -> Data:
    labels = torch.arange(_TRAIN + _TEST) % _CLASSES
    features = torch.randn(_CLASSES, width)[labels] + 4 * torch.randn(len(labels), width)
    return features[:_TRAIN], labels[:_TRAIN], features[_TRAIN:], labels[_TRAIN:]


def _knn(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    return knn_accuracies(train, train_labels, test, test_labels, [_NEIGHBORS], temperature=None)[_NEIGHBORS]


def _product(train: Tensor, _: Tensor, test: Tensor, __: Tensor) -> None:
    multiply(test, train, None, None)


def _linear(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    return LinearProbe(min_steps=_STEPS).accuracy(train, train_labels, test, test_labels)


def _neighbors_of_scikit_learn(*data: Tensor) -> float:
    return _score(KNeighborsClassifier(_NEIGHBORS, algorithm="brute", metric="cosine"), *data)


def _regression_of_scikit_learn(*data: Tensor) -> float:
    return _score(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), *data)


def _score(model: Any, *data: Tensor) -> float:
    train, train_labels, test, test_labels = (tensor.numpy() for tensor in data)
    return float(model.fit(train, train_labels).score(test, test_labels))


_NEAREST: dict[str, Classifier] = {
    "ours": _knn,
    "its product": _product,
    "scikit-learn": _neighbors_of_scikit_learn,
}
_LINEAR: dict[str, Classifier] = {"ours": _linear, "scikit-learn": _regression_of_scikit_learn}

if __name__ == "__main__":
    main()
