"""The Triton kernels of group_attention on a CPU, as interpreted_triton.py runs the others."""

import pytest
import torch
from tolerance import assert_no_worse_than_torch

from bimkern.ops import WindowGroups, group_windows
from bimkern.ops._triton import group_attention as kernels
from bimkern.ops.group_attention import group_attention_reference

DEFAULT = {"B": 2, "S": 1, "grid": (5, 6), "window": 3, "shift": 1, "T": 19, "H": 2, "d": 8}
CASES = [
    DEFAULT,
    DEFAULT | {"B": 0, "S": 0},  # no plan for no image
    *(DEFAULT | odd for odd in ({"S": 2}, {"B": 0}, {"T": 0}, {"T": 1}, {"T": 30}, {"d": 1}, {"d": 13}, {"d": 33})),
    DEFAULT | {"B": 1, "grid": (9, 9), "window": 9, "shift": 0, "T": 77},  # two blocks of queries and of keys
    DEFAULT | {"grid": (9, 9), "window": 3, "T": 81, "published": True},  # many windows in a group of two blocks
]


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, table, *rest):
        out, logsumexp = kernels.group_attention_fwd(qkv, table, *rest)
        ctx.inputs = logsumexp, qkv, table, *rest
        return out

    @staticmethod
    def backward(ctx, grad):
        return *kernels.group_attention_bwd(grad, *ctx.inputs), *[None] * 5


def sample(dtype=torch.float32, *, B, S, grid, window, shift, T, H, d, published=False):
    keep = torch.rand(S, grid[0] * grid[1]).argsort(dim=1)[:, :T].sort(dim=1).values
    groups = group_windows(keep, grid, window, shift)
    if published and T:  # one group of all windows
        order = groups.windows.argsort(stable=True).int()
        groups = WindowGroups(order[:, None], groups.windows, groups.positions)
    side = min(window, grid[0]), min(window, grid[1])
    table = torch.randn((2 * side[0] - 1) * (2 * side[1] - 1), H).to(torch.promote_types(dtype, torch.float32))
    return (
        *(torch.randn(B, T, 3 * H * d).to(dtype), table, groups.members, groups.windows, groups.positions),
        *(H, d**-0.5),
    )


@pytest.mark.parametrize("dims", CASES, ids=str)
def test_group_attention(dims):
    assert_no_worse_than_torch(Attention.apply, group_attention_reference, sample(**dims), grads=(0, 1))


def test_equal_values_give_no_gradient_to_logits_of_any_size():
    """The logsumexp of a large logit is rounded by as much as 1e-4, which all weights of a query share."""
    qkv, table, *rest = sample(**DEFAULT)
    qkv[..., 2 * qkv.shape[-1] // 3 :] = 1
    leaves = qkv.requires_grad_(), (table + 3000).requires_grad_()
    grad_qkv, grad_table = torch.autograd.grad(Attention.apply(*leaves, *rest).sum(), leaves)
    assert all(x.abs().max() < 1e-3 for x in (*grad_qkv.chunk(3, dim=-1)[:2], grad_table))


# Of the largest value. The interpreter cuts bfloat16 off, where a GPU rounds; the table's sums are integers.
ALLOWED = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-13}


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
def test_group_attention_in_every_dtype(dtype):
    qkv, table, *rest = sample(dtype, **DEFAULT)
    cotangent = torch.randn(2, 19, 16).to(dtype)

    def run(attention, *inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = attention(*leaves, *rest)
        return out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))

    found = run(Attention.apply, qkv, table)
    wanted = run(group_attention_reference, qkv.double(), table.double())
    for got, want in zip(found, wanted, strict=True):
        assert (got.double() - want).abs().max() <= ALLOWED[dtype] * want.abs().max()


def test_reads_strides():
    qkv, table, *rest = sample(**DEFAULT)
    want = Attention.apply(qkv, table, *rest)
    for view in (qkv.transpose(0, 1).contiguous().transpose(0, 1), qkv.mT.contiguous().mT):
        torch.testing.assert_close(Attention.apply(view, table, *rest), want, rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_number_gives_no_number(value):
    qkv, table, *rest = sample(**DEFAULT)
    qkv[0, 3, 5] = value
    leaves = qkv.requires_grad_(), table.requires_grad_()
    out = Attention.apply(*leaves, *rest)
    grad_table = torch.autograd.grad(out, leaves, torch.ones_like(out))[1]
    assert not grad_table.isfinite().any()


def test_a_gradient_of_zero_gives_zeros():
    qkv, table, *rest = sample(**DEFAULT)
    leaves = qkv.requires_grad_(), table.requires_grad_()
    out = Attention.apply(*leaves, *rest)
    assert not any(x.any() for x in torch.autograd.grad(out, leaves, torch.zeros_like(out)))
