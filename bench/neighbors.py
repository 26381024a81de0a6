"""`python -m bench.neighbors`: nearest neighbors of cached features, against scikit-learn's brute force, in turns.

It counts the CPU time of the process, so that other work on the machine does not matter.
"""

import statistics
import time
from collections.abc import Callable

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from bimkern.evaluate.neighbors import knn_accuracies

_TRAIN, _TEST, _CLASSES, _NEIGHBORS, _ROUNDS = 8000, 2000, 100, 20, 7
_WIDTHS = (192, 384, 768)  # of ViT-Ti, S and B

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # as knn_accuracies takes them


def main() -> None:
    for width in _WIDTHS:
        data, times = _sample(width), {name: list[float]() for name in _PROVIDERS}
        accuracies = {name: run(*data) for name, run in _PROVIDERS.items()}
        for _ in range(_ROUNDS):
            for name, run in _PROVIDERS.items():
                began = time.process_time()
                run(*data)
                times[name].append(time.process_time() - began)
        medians = {name: statistics.median(values) for name, values in times.items()}
        text = ", ".join(f"{name} {1e3 * medians[name]:.0f} ms ({accuracies[name]:.1%})" for name in _PROVIDERS)
        print(f"{_TRAIN} + {_TEST} features of width {width}: {text}, {medians['scikit-learn'] / medians['ours']:.2f}x")


def _sample(width: int) -> Data:
    labels = torch.arange(_TRAIN + _TEST) % _CLASSES
    features = torch.randn(_CLASSES, width)[labels] + 4 * torch.randn(len(labels), width)
    return features[:_TRAIN], labels[:_TRAIN], features[_TRAIN:], labels[_TRAIN:]


def _ours(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    return knn_accuracies(train, train_labels, test, test_labels, [_NEIGHBORS], temperature=None)[_NEIGHBORS]


def _scikit_learn(*data: Tensor) -> float:
    train, train_labels, test, test_labels = (tensor.numpy() for tensor in data)
    model = KNeighborsClassifier(_NEIGHBORS, algorithm="brute", metric="cosine")
    return float(model.fit(train, train_labels).score(test, test_labels))


_PROVIDERS: dict[str, Callable[..., float]] = {"ours": _ours, "scikit-learn": _scikit_learn}

if __name__ == "__main__":
    main()
