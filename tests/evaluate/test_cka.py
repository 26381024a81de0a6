"""Linear CKA: its invariances, and the published form of its estimate."""

import pytest
import torch

from bimkern.evaluate.cka import MinibatchCKA, centered_gram


def cka(*features, size=None):
    """Return the CKA of every pair of features, estimated over batches of some size."""
    found = MinibatchCKA()
    for batch in zip(*(one.split(size or len(one)) for one in features), strict=True):
        found.add([centered_gram(one) for one in batch])
    return found.result()


def hsic(first, second):
    """Song et al. 2012, equation 5, from the Gram matrices of features."""
    n, ones = len(first), torch.ones(len(first), dtype=torch.float64)
    k, m = ((x.double() @ x.double().T).fill_diagonal_(0) for x in (first, second))
    trace = torch.trace(k @ m)
    both = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (trace + both - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def test_it_is_the_published_estimate():
    x, y = torch.randn(9, 5), torch.randn(9, 3)
    y[:, 0] += x[:, 1]
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    torch.testing.assert_close(cka(x, y)[0, 1], expected, rtol=1e-4, atol=1e-6)


def test_it_averages_the_estimates_of_batches_before_it_divides():
    x, y = torch.randn(12, 5), torch.randn(12, 5)
    means = [sum(hsic(*pair) for pair in zip(a.split(6), b.split(6), strict=True)) for a, b in ((x, y), (x, x), (y, y))]
    torch.testing.assert_close(cka(x, y, size=6)[0, 1], means[0] / (means[1] * means[2]).sqrt(), rtol=1e-4, atol=1e-6)


def test_rotation_scale_and_shift_change_nothing():
    x, other = torch.randn(40, 16), torch.randn(40, 8)
    other[:, :8] += x[:, :8]
    rotation = torch.linalg.qr(torch.randn(16, 16)).Q
    found = cka(x, 7 * x @ rotation + 3, other, size=10)
    torch.testing.assert_close(found[0, 1].item(), 1.0, rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0, 2], found[1, 2], rtol=1e-4, atol=1e-6)


def test_other_linear_maps_change_it():
    x = torch.randn(200, 8)
    assert cka(x, x * torch.tensor([9.0, 1, 1, 1, 1, 1, 1, 1]))[0, 1] < 0.9


def test_independent_features_are_not_alike_even_where_they_are_many():
    found = cka(torch.randn(400, 4000), torch.randn(400, 4000), size=40)
    assert abs(found[0, 1]) < 0.1  # the biased estimate is above 0.9 here
    torch.testing.assert_close(found.diagonal(), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("same", [torch.ones(1, 3), torch.randn(1, 300), 1e3 + torch.rand(1, 300)])
@pytest.mark.parametrize("count", [7, 8])
def test_features_that_never_change_are_like_none(same, count):
    found = cka(same.repeat(count, 1), torch.randn(count, 3), 3 * same.repeat(count, 1))
    assert found[[0, 2]].isnan().all()
    assert found[1, 1] == pytest.approx(1)
