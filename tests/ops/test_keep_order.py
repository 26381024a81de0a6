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
    masked = keep_to_mask(keep, N)
    assert torch.equal(masked, keep_to_mask(keep.sort(dim=1).values, N))
    assert torch.equal(out, tokens * (1 - masked.unsqueeze(-1)))


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


@pytest.fixture(params=WRONG)
def wrong(request, gpu):
    """A keep whose image IMAGE has a wrong last id."""
    keep = unordered(gpu)
    keep[IMAGE, -1] = keep[IMAGE, 0] if WRONG[request.param] is None else WRONG[request.param]
    return keep


def is_repeated(keep):
    return bool(keep[IMAGE, -1] == keep[IMAGE, 0])


def assert_nan_rows(x, expected):
    """Hold the rows of x [B, rows, D] that are NaN, whole, to those of image IMAGE that are expected."""
    rows = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    rows[IMAGE, expected] = True
    assert torch.equal(x.isnan(), rows.unsqueeze(-1).expand_as(x))


def test_a_wrong_id_makes_nan_of_what_is_gathered_on_a_gpu(gpu, wrong):
    tokens, pos = floats(gpu, B, R + N, D), floats(gpu, N, D)
    out = gather_tokens(tokens, wrong, pos, num_prefix=R)
    assert_nan_rows(out, [] if is_repeated(wrong) else [R + K - 1])  # a repeated row is what torch.gather gives
    grad_tokens, grad_pos = torch.autograd.grad(out, (tokens, pos), torch.ones_like(out))
    assert_nan_rows(grad_tokens, R + wrong[IMAGE, :1] if is_repeated(wrong) else slice(R, None))
    assert grad_pos.isnan().all()


def test_a_wrong_id_makes_nan_of_what_is_restored_on_a_gpu(gpu, wrong):
    leaves = floats(gpu, B, R + K, D), floats(gpu, D), floats(gpu, N, D)
    visible, mask_token, pos = leaves
    out = restore_tokens(visible, wrong, mask_token, pos, num_tokens=N, num_prefix=R)
    assert_nan_rows(out, R + wrong[IMAGE, :1] if is_repeated(wrong) else slice(R, None))
    grad_visible, grad_mask_token, grad_pos = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert_nan_rows(grad_visible, slice(R, None))
    assert grad_mask_token.isnan().all()
    assert grad_pos.isnan().all()


def test_a_wrong_id_makes_nan_of_what_is_embedded_on_a_gpu(gpu, wrong):
    leaves = [floats(gpu, *shape) for shape in ((B, 3, 24, 24), (D, 3, 4, 4), (D,), (N, D), (R, D))]
    images, weight, bias, pos, prefix = leaves
    out = embed_visible(images, weight, bias, wrong, pos, prefix=prefix)
    assert_nan_rows(out, [] if is_repeated(wrong) else [R + K - 1])
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    grad_images, grad_weight, grad_bias, grad_pos, grad_prefix = grads
    assert grad_images.isnan().flatten(1).sum(dim=1)[IMAGE] == (1 if is_repeated(wrong) else N) * 3 * 4 * 4
    assert grad_images.isnan().flatten(1).any(dim=1).sum() == 1
    assert grad_pos.isnan().all()
    assert grad_weight.isnan().all() if not is_repeated(wrong) else grad_weight.isfinite().all()
    assert grad_bias.isfinite().all()
    assert grad_prefix.isfinite().all()


def test_a_wrong_id_makes_nan_of_its_mask_on_a_gpu(wrong):
    mask = keep_to_mask(wrong, N)
    assert mask.isnan().all(dim=1).tolist() == [image == IMAGE and not is_repeated(wrong) for image in range(B)]
    assert mask.isnan().any(dim=1).sum() == (not is_repeated(wrong))
