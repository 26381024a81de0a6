"""Ops under other programs' names: what those compute, in their shapes, orders and random numbers."""

import pytest
import torch
from interop import import_or_skip
from torch import nn
from torch.nn import functional as F

from bench.hosts.mae import MaskedAutoencoderViT
from bimkern import dropin
from bimkern.ops.hog import hog

HALVES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def host():
    return MaskedAutoencoderViT(channels=4)


@pytest.mark.parametrize("dtype", HALVES)
def test_random_masking(host, device, dtype):
    x = torch.randn(3, 16, 8, device=device, dtype=dtype)
    torch.manual_seed(5)
    expected = host.random_masking(x, 0.7)
    torch.manual_seed(5)
    for theirs, ours in zip(expected, dropin.random_masking(x, 0.7), strict=True):
        assert theirs.dtype == ours.dtype
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("dtype", HALVES)
def test_unshuffle(device, dtype):
    x = torch.randn(2, 1 + 5, 8, device=device, dtype=dtype)
    mask_token, pos = torch.randn(1, 1, 8, device=device), torch.randn(1, 1 + 9, 8, device=device)
    ids_restore = torch.rand(2, 9, device=device).argsort(dim=1)
    tokens = torch.cat([x[:, 1:], mask_token.expand(2, 4, -1)], dim=1)
    tokens = tokens.gather(1, ids_restore[:, :, None].expand(-1, -1, 8))
    expected = torch.cat([x[:, :1], tokens], dim=1) + pos
    got = dropin.unshuffle(x, ids_restore, mask_token, pos)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patchify_loss(host, normalize, dtype):
    host.norm_pix_loss = normalize
    imgs, pred = torch.rand(2, 4, 32, 32), torch.randn(2, 16, 8 * 8 * 4, dtype=dtype)
    mask = (torch.rand(2, 16) < 0.6).float()
    expected = host.forward_loss(imgs, pred, mask)
    got = dropin.patchify_loss(imgs, pred, mask, normalize)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)


def test_maps_are_read_row_by_row():
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    tokens, masks = x.flatten(2).mT, [torch.rand(2, 12).argsort(dim=1)[:, :4] for _ in range(2)]
    for expected, got in ((tokens, x), (tokens.contiguous(), x.contiguous(memory_format=torch.channels_last))):
        assert torch.equal(dropin.apply_masks(got, masks), dropin.apply_masks(expected, masks))
        torch.manual_seed(5)
        whole = dropin.random_masking(expected, 0.5)
        torch.manual_seed(5)
        assert all(map(torch.equal, dropin.random_masking(got, 0.5), whole))
    assert torch.autograd.grad(dropin.apply_masks(x, masks).sum(), x)[0].sum() == 2 * 2 * 4 * 5
    pred, mask = torch.randn(2, 192, 3, 4), torch.rand(2, 3, 4) < 0.6
    imgs = torch.rand(2, 3, 24, 32)
    expected = dropin.patchify_loss(imgs, pred.flatten(2).mT, mask.flatten(1).float())
    assert torch.equal(dropin.patchify_loss(imgs, pred, mask), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_of_functions_under_autocast_with_a_grad_scaler(host, dtype):
    host.decoder_blocks, host.decoder_norm = nn.ModuleList(), nn.Identity()
    imgs, grads = torch.rand(2, 4, 32, 32), []

    def ours(imgs):
        x, mask, ids_restore = dropin.random_masking(host.patch_embed(imgs), 0.6)
        x = host.decoder_embed(torch.cat([host.cls_token.expand(len(x), -1, -1), x], dim=1))
        pred = host.decoder_pred(dropin.unshuffle(x, ids_restore, host.mask_token, host.decoder_pos_embed))[:, 1:]
        return dropin.patchify_loss(imgs, pred, mask, norm_pix_loss=True)

    def theirs(imgs):
        x, mask, ids_restore = host.random_masking(host.patch_embed(imgs), 0.6)
        x = torch.cat([host.cls_token.expand(len(x), -1, -1), x], dim=1)
        return host.forward_loss(imgs, host.forward_decoder(x, ids_restore), mask)

    for loss_of in (theirs, ours):
        host.zero_grad()
        scaler = torch.amp.GradScaler("cpu")
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype):
            loss = loss_of(imgs)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(torch.optim.SGD(host.parameters()))
        grads.append(torch.cat([p.grad.flatten() for p in host.parameters() if p.grad is not None]))
    assert grads[0].isfinite().all()
    assert (grads[1] - grads[0]).norm() <= torch.finfo(dtype).eps * grads[0].norm()


def test_apply_masks(device):
    x = torch.randn(3, 12, 5, device=device, requires_grad=True)
    masks = [torch.rand(3, 12, device=device).argsort(dim=1)[:, :4] for _ in range(3)]  # which overlap
    parts = [x.gather(1, mask[:, :, None].expand(-1, -1, 5)) for mask in masks]
    got = dropin.apply_masks(x, masks)
    assert torch.equal(got, torch.cat(parts))
    weights = torch.randn_like(got)
    (expected,) = torch.autograd.grad((torch.cat(parts) * weights).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), x)[0], expected)
    apart = dropin.apply_masks(x, masks, concat=False)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(apart, parts, strict=True))
    assert torch.equal(dropin.apply_masks(x, masks[:1]), parts[0])


@pytest.mark.parametrize("dtype", HALVES)
def test_apply_masks_to_channels_first_tokens(device, dtype):
    x = torch.randn(2, 6, 3, 4, device=device, dtype=dtype).flatten(2).mT.requires_grad_()  # [B, N, D], D strided
    masks = [torch.rand(2, 12, device=device).argsort(dim=1)[:, :4] for _ in range(2)]
    got = dropin.apply_masks(x, masks)
    parts = [x.gather(1, mask[:, :, None].expand(-1, -1, 6)) for mask in masks]
    assert torch.equal(got, torch.cat(parts))
    weights = torch.randint(-4, 5, got.shape, device=device).to(dtype)  # their sums are exact
    (expected,) = torch.autograd.grad((torch.cat(parts) * weights).sum(), x)
    assert torch.equal(torch.autograd.grad((got * weights).sum(), x)[0], expected)


def test_apply_no_masks():
    assert dropin.apply_masks(torch.rand(1, 2, 3), [], concat=False) == []
    with pytest.raises(
        ValueError, match=r"^apply_masks: masks must have one shape \[B, K\], got \[\[1, 1\], \[1, 2\]\]$"
    ):
        dropin.apply_masks(torch.rand(1, 2, 3), [torch.zeros(1, 1).long(), torch.tensor([[0, 1]])])
    with pytest.raises(ValueError, match=r"^apply_masks: masks must hold at least one tensor, got none$"):
        dropin.apply_masks(torch.rand(1, 2, 3), [])


def test_patch_dropout():
    PatchDropout = import_or_skip("timm.layers").PatchDropout
    x = torch.randn(2, 2 + 10, 4)
    for options in ({}, {"num_prefix_tokens": 2, "ordered": True, "prob": 0.3}, {"prob": 0.0}):
        torch.manual_seed(5)
        expected = PatchDropout(**options)(x)
        torch.manual_seed(5)
        assert torch.equal(dropin.PatchDropout(**options)(x), expected)
    assert dropin.PatchDropout().eval()(x) is x


def test_patch_dropout_of_everything():
    with pytest.raises(ValueError, match=r"^PatchDropout: prob must be in \[0, 1\), got 1$"):
        dropin.PatchDropout(1)


def test_hog_layer_is_laid_out_as_maskfeats():
    images = torch.randint(256, (2, 3, 32, 48)).to(torch.uint8)
    got = dropin.HOGLayer(nbins=9, pool=8)(images)
    assert got.shape == (2, 3, 9, 4, 6)
    torch.testing.assert_close(got.pow(2).sum(2), torch.ones(2, 3, 4, 6))  # cells have length 1, over their bins
    ramp = torch.arange(48, dtype=torch.uint8).expand(1, 3, 32, 48)  # gradients point along x
    inner = dropin.HOGLayer(pool=8)(ramp)[:, :, :, :, 1:-1]
    assert torch.equal(inner.argmax(2), torch.full((1, 3, 4, 4), 4))
    windowed = dropin.HOGLayer(pool=8, gaussian_window=16)(images)
    vectors = hog(images, 8, window=16).unflatten(1, (4, 6)).unflatten(3, (3, 9))
    assert torch.equal(windowed, vectors.permute(0, 3, 4, 1, 2))
    assert F.mse_loss(windowed, got) > 0
