"""Every op that takes a keep: ids in any order, and what a GPU does with ids that are wrong."""

import pytest
import torch

from bimkern.ops import embed_visible, gather_tokens, keep_to_mask, random_keep, restore_tokens

B, R, N, K, D = 5, 2, 36, 9, 16
WRONG = {"beyond": N, "negative": -1, "far": 2**62, "repeated": None}
IMAGE = 3  # the one whose last id is wrong


def unordered(device):
    return torch.rand(B, N, device=device).argsort(dim=1)[:, :K]


def floats(device, *shape):
    return torch.randn(shape, device=device, requires_grad=True)


def by_gather(tokens, keep, pos):
    index = keep.unsqueeze(-1).expand(-1, -1, D)
    return torch.cat([tokens[:, :R], (tokens[:, R:] + pos).gather(1, index)], dim=1)


def by_ids_restore(visible, ids_restore, mask_token, pos):
    """He et al. 2022 (MAE): mask tokens appended, then un-shuffled."""
    tokens = torch.cat([visible[:, R:], mask_token.expand(B, N - K, D)], dim=1)
    return torch.cat([visible[:, :R], tokens.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, D)) + pos], dim=1)


def assert_same(found, wanted, leaves):
    assert torch.equal(found, wanted)
    cotangent = torch.randint(-9, 9, found.shape, device=found.device).float()  # sums in any order are exact
    grads = (torch.autograd.grad(out, leaves, cotangent) for out in (found, wanted))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_tokens_are_gathered_as_by_torch_in_any_order(device, monkeypatch, backend):
    if backend is not None:
        monkeypatch.setenv("BIMKERN_BACKEND", backend)
    tokens, pos, keep = floats(device, B, R + N, D), floats(device, N, D), unordered(device)
    assert_same(gather_tokens(tokens, keep, pos, num_prefix=R), by_gather(tokens, keep, pos), (tokens, pos))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_every_token_is_restored_to_its_place_in_any_order(device, monkeypatch, backend):
    if backend is not None:
        monkeypatch.setenv("BIMKERN_BACKEND", backend)
    leaves = floats(device, B, R + K, D), floats(device, D), floats(device, N, D)
    visible, mask_token, pos = leaves
    ids_restore = torch.rand(B, N, device=device).argsort(dim=1).argsort(dim=1)
    keep = ids_restore.argsort(dim=1)[:, :K]
    found = restore_tokens(visible, keep, mask_token, pos, num_tokens=N, num_prefix=R)
    assert_same(found, by_ids_restore(visible, ids_restore, mask_token, pos), leaves)


def test_restoring_undoes_gathering_in_any_order(device):
    tokens, keep = torch.randn(B, N, D, device=device), unordered(device)
    out = restore_tokens(gather_tokens(tokens, keep), keep, torch.zeros(D, device=device), num_tokens=N)
    hidden = keep_to_mask(keep, N)
    assert torch.equal(hidden, keep_to_mask(keep.sort(dim=1).values, N))
    assert torch.equal(out, tokens * (1 - hidden.unsqueeze(-1)))


def test_patches_are_embedded_in_the_order_of_keep(device):
    images = torch.randint(0, 256, (B, 3, 24, 24), device=device, dtype=torch.uint8)
    leaves = floats(device, D, 3, 4, 4), floats(device, D), floats(device, N, D)
    weight, bias, pos = leaves
    keep = unordered(device)
    ordered, order = keep.sort(dim=1)
    found = embed_visible(images, weight, bias, keep, pos).gather(1, order.unsqueeze(-1).expand(-1, -1, D))
    wanted = embed_visible(images, weight, bias, ordered, pos)
    assert torch.equal(found, wanted)
    cotangent = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad(out, leaves, cotangent) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))  # sums of other orders


def test_a_draw_inside_a_parent_follows_its_order(device):
    ids, parent = torch.arange(B, device=device), unordered(device)
    keep, within = random_keep(ids, N, 4, seed=1, parent=parent)
    assert torch.equal(keep, parent.gather(1, within))
    assert (within.diff(dim=1) > 0).all()
    ordered, _ = random_keep(ids, N, 4, seed=1, parent=parent.sort(dim=1).values)
    assert torch.equal(keep.sort(dim=1).values, ordered)


def wrong_keep(kind):
    keep = unordered("cuda")
    keep[IMAGE, -1] = keep[IMAGE, 0] if WRONG[kind] is None else WRONG[kind]
    return keep


def nans(x):
    """Return which images hold NaN."""
    return x.isnan().flatten(1).any(dim=1).tolist()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ALONE = [image == IMAGE for image in range(B)]
NONE = [False] * B


@needs_gpu
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_id_makes_nan_of_what_is_gathered_on_a_gpu(kind):
    tokens, pos, keep = floats("cuda", B, R + N, D), floats("cuda", N, D), wrong_keep(kind)
    out = gather_tokens(tokens, keep, pos, num_prefix=R)
    assert nans(out) == (NONE if kind == "repeated" else ALONE)  # a repeated row is what torch.gather gives
    grad_tokens, grad_pos = torch.autograd.grad(out, (tokens, pos), torch.ones_like(out))
    assert nans(grad_tokens) == ALONE
    assert grad_pos.isnan().any()


@needs_gpu
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_id_makes_nan_of_what_is_restored_on_a_gpu(kind):
    leaves = floats("cuda", B, R + K, D), floats("cuda", D), floats("cuda", N, D)
    visible, mask_token, pos = leaves
    out = restore_tokens(visible, wrong_keep(kind), mask_token, pos, num_tokens=N, num_prefix=R)
    assert nans(out) == ALONE
    grad_visible, grad_mask_token, grad_pos = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert nans(grad_visible) == ALONE
    assert grad_visible[IMAGE, R:].isnan().all()
    assert grad_mask_token.isnan().all()
    assert grad_pos.isnan().all()


@needs_gpu
@pytest.mark.parametrize("kind", ["beyond", "negative", "far"])
def test_a_wrong_id_makes_nan_of_masks_and_embeddings_on_a_gpu(kind):
    keep = wrong_keep(kind)
    assert nans(keep_to_mask(keep, N)) == ALONE
    images = torch.zeros(B, 3, 24, 24, device="cuda", dtype=torch.uint8)
    leaves = floats("cuda", D, 3, 4, 4), floats("cuda", D), floats("cuda", N, D)
    weight, bias, pos = leaves
    out = embed_visible(images, weight, bias, keep, pos)
    assert nans(out) == ALONE
    assert out[IMAGE, :-1].isfinite().all()
    assert torch.autograd.grad(out.sum(), leaves)[0].isnan().any()
