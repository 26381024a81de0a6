"""The Triton kernels on a CPU: test_triton.py runs this with TRITON_INTERPRET=1, in a process of its own, since an
access out of bounds ends it.
"""

import pytest
import torch
from tolerance import assert_no_worse_than_torch

from bench.traffic.triton_accesses import recorded
from bimkern.ops._triton import masked_loss as rows
from bimkern.ops._triton import masked_pixel_loss as patches
from bimkern.ops._triton import pixel_targets as targets
from bimkern.ops._triton.rows import alignment
from bimkern.ops.masked_loss import masked_loss_reference
from bimkern.ops.masked_pixel_loss import masked_pixel_loss_reference
from bimkern.ops.pixel_targets import PIXELS, pixel_targets_reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WIDE_TO_BFLOAT16 = "the interpreter makes zeros of float64 where it should make bfloat16"
SIZES = [(2, 9, 96), (1, 1, 1), (3, 7, 27), (2, 3, 300), (0, 4, 8), (2, 0, 8), (1, 130, 5)]
IMAGES = [(2, 3, 8, 12, 4), (1, 1, 14, 7, 7), (2, 5, 6, 6, 3), (0, 3, 8, 8, 4), (1, 3, 32, 16, 16), (1, 2, 3, 5, 1)]


def differentiable(forward, backward):
    """Make a function of pred and the other arguments of a pair of launchers."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            ctx.arguments = arguments
            return forward(*arguments)

        @staticmethod
        def backward(ctx, grad):
            return backward(grad, *ctx.arguments), *[None] * (len(ctx.arguments) - 1)

    return Function.apply


masked_loss = differentiable(rows.masked_loss, rows.masked_loss_bwd)
masked_pixel_loss = differentiable(patches.masked_pixel_loss, patches.masked_pixel_loss_bwd)


def weights(B, N, dtype=torch.float32):
    weight = torch.randint(0, 5, (B, N)).to(dtype) / 4
    weight[:, ::3] = 1
    return weight


def statistics(C, dtype=torch.float32):
    """Draw mean and std; a mean times 255 is exact, or one pixel decides by luck."""
    return (torch.randint(0, 256, (C,)) / 256).to(dtype), (0.2 + torch.rand(C)).to(dtype)


def assert_equals(ours, torchs, pred, *rest):
    if pred.dtype == torch.bfloat16:
        leaf, wide = pred.clone().requires_grad_(), pred.float().requires_grad_()
        loss, want = ours(leaf, *rest), torchs(wide, *rest)
        torch.testing.assert_close(loss, want)
        got, exact = torch.autograd.grad(loss, leaf)[0].float(), torch.autograd.grad(want, wide)[0]
        # The interpreter cuts bfloat16 off, where a GPU rounds.
        assert ((got - exact).abs() <= torch.finfo(torch.bfloat16).eps * exact.abs()).all()
    elif torch.float64 in (pred.dtype, rest[1].dtype):  # the reference is the truth itself, or rounds to it
        leaves = [pred.clone().requires_grad_() for _ in range(2)]
        losses = [fn(leaf, *rest) for fn, leaf in zip((ours, torchs), leaves, strict=True)]
        torch.testing.assert_close(*losses)
        grads = [torch.autograd.grad(loss, leaf) for loss, leaf in zip(losses, leaves, strict=True)]
        torch.testing.assert_close(*grads)
    else:
        assert_no_worse_than_torch(ours, torchs, (pred, *rest), grads=(0,))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masked_loss(size, absolute):
    B, N, P = size
    weight = weights(B, N)
    assert_equals(
        masked_loss, masked_loss_reference, torch.randn(B, N, P), torch.randn(B, N, P), weight, weight.sum(), absolute
    )


@pytest.mark.parametrize("target", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_loss_in_every_dtype(dtype, target):
    if (dtype, target) == (torch.bfloat16, torch.float64):
        pytest.skip(WIDE_TO_BFLOAT16)
    weight = weights(2, 9, torch.promote_types(target, torch.float32))
    pred, truth = torch.randn(2, 9, 33).to(dtype), torch.randn(2, 9, 33).to(target)
    assert_equals(masked_loss, masked_loss_reference, pred, truth, weight, weight.sum(), False)


def test_masked_loss_reads_strides_and_nothing_that_does_not_count():
    weight = weights(3, 7).T.contiguous().T
    pred, target = (torch.cat([torch.randn(3, 8, 5), torch.randn(3, 8, 5)], dim=-1)[:, 1:, 3:8] for _ in range(2))
    target.masked_fill_((weight == 0)[..., None], torch.nan)
    assert_equals(masked_loss, masked_loss_reference, pred, target, weight, weight.sum(), False)
    spoiled = pred.masked_fill((weight == 0)[..., None], torch.inf).mT.contiguous().mT
    assert rows.masked_loss(spoiled, target, weight, weight.sum(), False).isfinite()
    grad = rows.masked_loss_bwd(torch.tensor(1.0), spoiled, target, weight, weight.sum(), False)
    assert grad.isfinite().all()
    assert not grad[weight == 0].any()


def test_accesses_are_those_of_a_launch():
    pred, weight = torch.randn(2, 9, 16), torch.ones(2, 9)
    with recorded() as accesses:
        rows.masked_loss(pred, pred, weight, weight.sum(), False)
    assert {(access.launch, access.program) for access in accesses} == {(1, 0), (2, 0)}  # tiles, then their sums


@pytest.mark.parametrize(("length", "values"), [(768, 8), (588, 4), (108, 4), (54, 2), (27, 1), (8, 8)])
def test_rows_are_aligned_as_their_length_is(length, values):
    tokens = torch.empty(2, 50, length, dtype=torch.bfloat16)
    assert alignment(tokens) == values
    assert alignment(tokens[:, 1:]) == values  # what follows a cls token
    assert alignment(tokens.flatten(1)[:, 1:]) == 1


def test_rows_are_aligned_as_the_worst_of_length_stride_and_start():
    wide = torch.empty(2, 9, 16)
    assert alignment(wide[..., :12]) == 4
    assert alignment(wide[..., 2:10]) == 2
    assert alignment(torch.empty(2, 9, 18)[..., :16]) == 2
    assert alignment(wide, torch.empty(2, 9, 16)[..., 1:]) == 1
    assert alignment(torch.empty(1, 1, 16).expand(2, 9, 16)) == 8
    assert alignment(torch.empty(1, 9, 16).as_strided((1, 9, 16), (145, 16, 1))) == 8  # one image has no next


def test_many_partial_sums_are_added():
    count = 2 * rows._SUM_BLOCK + 7
    partial = torch.arange(count).float()
    assert rows.sum_of(partial, torch.tensor(3.0)) == count * (count - 1) // 6


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_pixel_targets(size, normalize):
    B, C, H, W, p = size
    images = torch.randint(0, 256, (B, C, H, W), dtype=torch.uint8)
    args = *statistics(C), p, normalize

    def torchs(images, mean, std, patch, normalize, _dtype):
        return pixel_targets_reference(images, mean, std, patch, normalize, mean.dtype)

    assert_no_worse_than_torch(targets.pixel_targets, torchs, (images, *args, torch.float32))


@pytest.mark.parametrize("dtype", PIXELS, ids=str)
@pytest.mark.parametrize("given", ["both", "mean", "std", "none"])
def test_pixel_targets_in_every_dtype(given, dtype):
    images = (torch.rand(2, 3, 8, 8) * 255).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean, std = statistics(3, wide)
    mean, std = mean if given in ("both", "mean") else None, std if given in ("both", "std") else None
    args = images, mean, std, 4, True, wide
    torch.testing.assert_close(targets.pixel_targets(*args), pixel_targets_reference(*args))
    view = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(targets.pixel_targets(view, *args[1:]), targets.pixel_targets(*args))


@pytest.mark.parametrize("value", [0.1, -1.7, 1e4])
def test_a_constant_patch_is_exactly_zero(value):
    images = torch.full((1, 3, 16, 16), value)
    assert not targets.pixel_targets(images, None, None, 16, True, torch.float32).any()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_masked_pixel_loss(size, absolute):
    B, C, H, W, p = size
    images = torch.randint(0, 256, (B, C, H, W), dtype=torch.uint8)
    weight = weights(B, H // p * (W // p))
    pred = torch.randn(*weight.shape, C * p * p) + 9  # no target is near: rounding decides no sign
    args = images, weight, weight.sum(), *statistics(C), p, True, absolute
    assert_equals(masked_pixel_loss, masked_pixel_loss_reference, pred, *args)


@pytest.mark.parametrize("images", PIXELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_pixel_loss_in_every_dtype(dtype, images):
    if (dtype, images) == (torch.bfloat16, torch.float64):
        pytest.skip(WIDE_TO_BFLOAT16)
    wide = torch.float64 if images == torch.float64 else torch.float32
    weight = weights(2, 4, wide)
    pixels = (torch.rand(2, 3, 8, 8) * 255).to(images)
    args = pixels, weight, weight.sum(), *statistics(3, wide), 4, True, False
    assert_equals(masked_pixel_loss, masked_pixel_loss_reference, torch.randn(2, 4, 48).to(dtype), *args)


def test_patches_of_weight_zero_are_not_read():
    weight = torch.tensor([[0.0, 1.0]])
    images = torch.rand(1, 3, 4, 8)
    images[..., :4] = torch.nan
    pred = torch.randn(1, 2, 48).masked_fill((weight == 0)[..., None], torch.nan)
    args = pred, images, weight, weight.sum(), None, None, 4, True, False
    assert patches.masked_pixel_loss(*args).isfinite()
    grad = patches.masked_pixel_loss_bwd(torch.tensor(1.0), *args)
    assert not grad[0, 0].any()
    assert grad[0, 1].all()


def test_a_denominator_of_zero_gives_zero_and_zero_gradients():
    pred, zero, one = torch.randn(1, 4, 48), torch.tensor(0.0), torch.tensor(1.0)
    plain = pred, torch.randn(1, 4, 48), torch.ones(1, 4), zero, False
    pixels = pred, torch.rand(1, 3, 8, 8), torch.ones(1, 4), zero, None, None, 4, True, False
    assert rows.masked_loss(*plain) == 0
    assert patches.masked_pixel_loss(*pixels) == 0
    assert not rows.masked_loss_bwd(one, *plain).any()
    assert not patches.masked_pixel_loss_bwd(one, *pixels).any()
