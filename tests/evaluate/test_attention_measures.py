"""Measures of attention maps, against values computed by hand."""

from math import log, sqrt

import pytest
import torch

from bimkern.evaluate.attention_measures import (
    attention_distance,
    attention_entropy,
    kl_divergence,
    normalized_mutual_information,
    without_prefix,
)

UNIFORM = torch.full((4, 4), 0.25)
IDENTITY = torch.eye(4)
ONE_KEY = torch.tensor([[0.0, 1, 0, 0]]).expand(4, 4)
SQUARE = torch.tensor([[0, 1, 1, sqrt(2)], [1, 0, sqrt(2), 1], [1, sqrt(2), 0, 1], [sqrt(2), 1, 1, 0]])  # a 2 x 2 grid
HALVES = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]])
MAPS = {"uniform": UNIFORM, "identity": IDENTITY, "one key": ONE_KEY, "halves": HALVES}


def check(measure, expected):
    found = measure(torch.stack(list(MAPS.values())))
    assert found.shape == (4,)
    for name, value in zip(MAPS, found.tolist(), strict=True):
        assert value == pytest.approx(expected[name], abs=1e-6), name


def test_distance_of_a_grid_of_2_x_2_patches():
    far = (2 + sqrt(2)) / 4  # to 0, 1, 1 and the diagonal
    check(
        lambda weights: attention_distance(weights, 16 * SQUARE),
        {"uniform": 16 * far, "identity": 0, "one key": 16 * far, "halves": 8},
    )


def test_distances_may_differ_between_windows():
    weights = UNIFORM.expand(5, 2, 3, 4, 4)  # [B, W, H, Q, K]
    distances = torch.stack([SQUARE, 2 * SQUARE])  # [W, Q, K]
    found = attention_distance(weights, distances.unsqueeze(1))
    assert found.shape == (5, 2, 3)
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])


def test_entropy_is_that_of_a_query():
    check(attention_entropy, {"uniform": log(4), "identity": 0, "one key": 0, "halves": log(2)})


def test_mutual_information_is_that_of_queries_and_keys():
    # halves: the key tells which half the query is in, ln 2 of ln 4.
    check(normalized_mutual_information, {"uniform": 0, "identity": 1, "one key": 0, "halves": 0.5})


def test_mutual_information_is_normalized_by_both_entropies():
    to_two = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])  # 4 queries, 2 keys: I = H(k) = ln 2
    assert normalized_mutual_information(to_two).item() == pytest.approx(log(2) / sqrt(log(4) * log(2)))


@pytest.mark.parametrize("scale", [0.01, 1, 30, 1000])
def test_mutual_information_is_bounded(scale):
    weights = (scale * torch.randn(50, 7, 5)).softmax(dim=-1)
    found = normalized_mutual_information(weights)
    assert ((found >= 0) & (found <= 1)).all()


def test_a_single_query_has_no_mutual_information():
    assert normalized_mutual_information(torch.ones(3, 1, 1)).isnan().all()


def test_divergence_is_that_of_each_head_from_each():
    other = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    one = torch.tensor([[0.25, 0.75], [0.75, 0.25]])
    found = kl_divergence(torch.stack([one, other, one]))
    there = 0.25 * log(0.5) + 0.75 * log(1.5)
    back = 0.5 * log(2) + 0.5 * log(2 / 3)
    expected = torch.tensor([[0, there, 0], [back, 0, back], [0, there, 0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_divergence_from_weights_of_zero_is_finite():
    found = kl_divergence(torch.stack([UNIFORM, IDENTITY]))
    assert found.isfinite().all()
    assert found[1, 0].item() == pytest.approx(log(4))
    assert found[0, 1] > 60  # three quarters of the weight lie where the identity has none


def test_equal_maps_do_not_diverge():
    weights = torch.randn(2, 3, 1, 6, 6).softmax(dim=-1).expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(kl_divergence(weights), torch.zeros(2, 3, 4, 4), atol=1e-5, rtol=0)


def test_the_share_of_the_class_token_goes_to_the_patches():
    weights = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [1.0, 0, 0]])
    expected = torch.tensor([[0.8, 0.2], [0, 0]])
    torch.testing.assert_close(without_prefix(weights, 1), expected)
    assert without_prefix(weights, 0) is weights
