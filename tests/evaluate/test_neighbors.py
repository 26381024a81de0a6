"""Nearest neighbors are exact, in whatever blocks they are found."""

import numpy as np
import pytest
import torch
from made_sizes import MadeSizes
from sklearn.neighbors import KNeighborsClassifier

from bimkern.evaluate import neighbors
from bimkern.evaluate.errors import EvaluationError
from bimkern.evaluate.neighbors import knn_accuracies, nearest


def sample(num_train=90, num_test=37, num_classes=5, width=16):
    centers = torch.randn(num_classes, width)
    train_labels, test_labels = (torch.arange(count) % num_classes for count in (num_train, num_test))
    train, test = (centers[y] + 1.5 * torch.randn(len(y), width) for y in (train_labels, test_labels))
    return train, train_labels, test, test_labels


@pytest.mark.parametrize("k", [1, 4, 11, 90])
def test_a_plain_majority_equals_scikit_learn(k):
    train, train_labels, test, test_labels = sample()
    found = knn_accuracies(train, train_labels, test, test_labels, [k], temperature=None)
    theirs = KNeighborsClassifier(k, algorithm="brute", metric="cosine").fit(train.double(), train_labels)
    assert found == {k: pytest.approx(theirs.score(test.double(), test_labels), abs=1e-12)}


def test_weighted_votes_equal_scikit_learn_and_one_search_serves_several_k():
    train, train_labels, test, test_labels = sample()
    found = knn_accuracies(train, train_labels, test, test_labels, [9, 3])
    for k, accuracy in found.items():
        theirs = KNeighborsClassifier(
            k, algorithm="brute", metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
        )
        score = theirs.fit(train.double(), train_labels).score(test.double(), test_labels)
        assert accuracy == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (1, 90), (37, 1)])
def test_blocks_change_nothing(monkeypatch, rows, columns):
    train, _, test, _ = sample()
    similarities, indices = nearest(train.double(), test.double(), 10)
    monkeypatch.setattr(neighbors, "_ROWS", rows)
    monkeypatch.setattr(neighbors, "_COLUMNS", columns)
    in_blocks = nearest(train.double(), test.double(), 10)
    torch.testing.assert_close(in_blocks[0], similarities)
    assert torch.equal(in_blocks[1], indices)


def test_very_many_classes_vote_in_blocks_and_a_number_of_neighbors_may_come_twice(monkeypatch):
    train, _, test, _ = sample(num_test=64)
    labels, truth = torch.randint(1000, (len(train),)), torch.randint(1000, (64,))
    labels[0] = 999
    whole = knn_accuracies(train, labels, train, labels, [3, 1, 3])
    assert whole[1] == 1
    expected = knn_accuracies(train, labels, test, truth, [3, 1])
    monkeypatch.setattr(neighbors, "_ROWS", 16)
    with MadeSizes() as sizes:
        assert knn_accuracies(train, labels, test, truth, [3, 1]) == expected
    assert max(sizes.made) == 16 * 1000


@pytest.mark.parametrize("k", [0, 91])
def test_more_neighbors_than_images_are_refused(k):
    train, train_labels, test, test_labels = sample()
    message = rf"neighbors must be in \[1, 90\], the number of training images, got {k}; lower --k"
    with pytest.raises(EvaluationError, match=message):
        knn_accuracies(train, train_labels, test, test_labels, [k])
