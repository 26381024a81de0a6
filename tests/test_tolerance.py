"""The tests' tolerance: what is worse than torch fails, and luck alone does not."""

import pytest
import torch
from tolerance import assert_no_worse_than_torch


class Rounded(torch.autograd.Function):
    """Multiply by a weight; its gradient is off by a few steps of rounding."""

    @staticmethod
    def forward(ctx, x, weight, steps):
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        found = (grad.double() * x.double()).sum(0).to(weight.dtype)
        return grad * weight, found * (1 + ctx.steps * torch.finfo(weight.dtype).eps), None


def hold(steps):
    x, weight = torch.randn(1000, 4), torch.randn(4)
    assert_no_worse_than_torch(lambda *a: Rounded.apply(*a, steps), lambda x, w: x * w, [x, weight], grads=[0, 1])


@pytest.mark.parametrize("steps", [0, 0.5])
def test_what_is_no_worse_passes(steps):
    hold(steps)


@pytest.mark.parametrize("steps", [100, float("nan")])
def test_what_is_worse_fails(steps):
    with pytest.raises(AssertionError, match="gradient of input 1: error"):
        hold(steps)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: (x * 2)[:-1], "shape"),
        (lambda x: (x * 2).double(), "dtype"),
        (lambda x: x * 2.001, "output 0: error"),
        (lambda x: (x * 2).long(), "dtype"),
    ],
)
def test_wrong_outputs_fail(wrong, message):
    with pytest.raises(AssertionError, match=message):
        assert_no_worse_than_torch(wrong, lambda x: x * 2, [torch.randn(10)])


def test_wrong_integers_fail():
    with pytest.raises(AssertionError, match="integers differ"):
        assert_no_worse_than_torch(lambda x: x + 1, lambda x: x, [torch.arange(3)])
