"""lightly's documented MAE: what patch() makes of it and of changed copies, and its functions by our ops."""

import copy
import re

import pytest
import torch
from dropin_hosts import error_of, lightly_mae
from interop import import_or_skip
from torch import nn
from torch.nn import functional as F

from bench.hosts.lightly import MAE
from bimkern.dropin import lightly as ours
from bimkern.dropin import patch

IMAGES = torch.rand(3, 3, 32, 32)
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


class NormalizedTarget(MAE):
    def forward(self, images):
        predicted, target = super().forward(images)
        return predicted, (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)


class AddsPositionsTwice(MAE):
    def forward_decoder(self, x_encoded, idx_keep, idx_mask):
        self.decoder.decode = lambda x: type(self.decoder).decode(self.decoder, x + self.decoder.decoder_pos_embed)
        try:
            return super().forward_decoder(x_encoded, idx_keep, idx_mask)
        finally:
            del self.decoder.decode


@pytest.fixture
def utils():
    return import_or_skip("lightly.models.utils")


@pytest.fixture
def ids():
    order = torch.rand(3, 17).argsort(dim=1)
    return order[:, :5], order[:, 5:]


def outputs(model, images=IMAGES, seed=1):
    torch.manual_seed(seed)
    return model(images)


def test_one_line_replaces_gather_restore_and_target():
    model = lightly_mae()
    expected = outputs(model)
    patched = patch(model)
    assert not patched.left
    assert dict(patched.replaced) == {
        "forward": "masks and target",
        "forward_decoder": "decoder's input and its masked tokens",
        "backbone.preprocess": "gathering of kept tokens",
    }
    got = outputs(model)
    assert type(got) is type(expected)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(("fork", "left"), [(NormalizedTarget, "forward"), (AddsPositionsTwice, "forward_decoder")])
def test_what_a_copy_changed_stays(fork, left):
    model = lightly_mae()
    model.__class__ = fork
    expected = outputs(model)
    patched = patch(model)
    assert patched.left == {left: "computes other results than its replacement"}
    assert all(map(torch.equal, outputs(model), expected))


def test_a_decoder_that_is_changed_on_the_instance_is_called():
    model = lightly_mae()
    model.decoder.decode = lambda x: 2 * x
    expected = outputs(model)
    assert "forward_decoder" in patch(model).left
    assert all(map(torch.equal, outputs(model), expected))


@pytest.mark.parametrize("images", [torch.rand(2, 3, 16, 64), torch.rand(2, 3, 30, 30), IMAGES[0]])
def test_wrong_images_get_the_hosts_own_error(images):
    model = lightly_mae()
    expected = error_of(model, images)
    patch(model)
    got = error_of(model, images)
    assert type(got) is type(expected)
    assert str(got) == str(expected)


def test_a_target_that_needs_a_gradient_gets_it():
    model = lightly_mae()
    images = IMAGES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.mse_loss(*outputs(model, images)), images)
    patch(model)
    (got,) = torch.autograd.grad(F.mse_loss(*outputs(model, images)), images)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_hooks_on_the_decoders_layers_are_called():
    model = lightly_mae()
    patch(model)
    seen = []
    for name in ("decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred"):
        getattr(model.decoder, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    outputs(model)
    assert seen == ["decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred"]


def test_counter_masks_leave_the_class_token():
    model = lightly_mae()
    patch(model, masks="counter")
    kept = []
    encode = model.backbone.encode
    model.backbone.encode = lambda images, idx_keep: (kept.append(idx_keep), encode(images, idx_keep=idx_keep))[1]
    outputs(model)
    assert torch.equal(kept[0][:, 0], torch.zeros(3, dtype=torch.int64))
    assert torch.equal(kept[0], kept[0].sort(dim=1)[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_get_at_index(utils, ids, dtype):
    tokens = torch.randn(3, 17, 8, dtype=dtype)
    assert torch.equal(ours.get_at_index(tokens, ids[1]), utils.get_at_index(tokens, ids[1]))


@pytest.mark.parametrize("with_pos", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_restore_at_index(utils, ids, dtype, with_pos):
    value = torch.randn(3, 5, 8, dtype=dtype, requires_grad=True)
    mask_token, pos = nn.Parameter(torch.randn(1, 1, 8)), torch.randn(1, 17, 8)
    expected = utils.set_at_index(utils.repeat_token(mask_token, (3, 17)), ids[0], value.type_as(mask_token))
    expected = expected + pos if with_pos else expected
    got = ours.restore_at_index(mask_token, (3, 17), ids[0], value, pos if with_pos else None)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
    weights = torch.randn_like(got)
    slopes = [torch.autograd.grad((x * weights).sum(), (value, mask_token)) for x in (expected, got)]
    torch.testing.assert_close(slopes[1], slopes[0])


def test_restore_at_index_of_another_batch(ids):
    with pytest.raises(
        ValueError, match=r"^restore_at_index: size must be \(B=3, S\), as index has rows, got \(2, 17\)$"
    ):
        ours.restore_at_index(torch.zeros(1, 1, 8), (2, 17), ids[0], torch.zeros(3, 5, 8))


@pytest.mark.parametrize("dtype", FLOATS)
def test_patches_at_index(utils, dtype):
    images, index = torch.rand(3, 5, 32, 32).to(dtype), torch.rand(3, 16).argsort(dim=1)[:, :7]
    got = ours.patches_at_index(images, 8, index)
    assert torch.equal(got, utils.get_at_index(utils.patchify(images, 8), index))
    assert got.dtype == dtype


def test_patches_of_integers():
    text = "patches_at_index: images must be floating, got torch.uint8: divide by 255 first"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        ours.patches_at_index(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 8, torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_patch_mse_loss(utils, dtype):
    index = torch.rand(3, 16).argsort(dim=1)[:, :7]
    pred = torch.randn(3, 7, 192, dtype=dtype, requires_grad=True)
    images = torch.rand(3, 3, 32, 32).to(dtype)
    expected = F.mse_loss(pred, utils.get_at_index(utils.patchify(images, 8), index))
    got = ours.patch_mse_loss(pred, images, 8, index)
    assert got.dtype == expected.dtype
    error = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-6, "atol": 1e-9}
    torch.testing.assert_close(got, expected, **error)
    slopes = [torch.autograd.grad(x, pred)[0] for x in (expected, got)]
    torch.testing.assert_close(slopes[1], slopes[0], **error)


def test_the_documented_step_by_functions_has_the_losses_of_lightly(utils):
    model = lightly_mae()
    other = copy.deepcopy(model)

    def loss(images):
        size = len(images), other.sequence_length
        idx_keep, idx_mask = utils.random_token_mask(size, other.mask_ratio)
        embedded = other.decoder.embed(other.backbone.encode(images, idx_keep=idx_keep))
        tokens = other.decoder.decode(ours.restore_at_index(other.decoder.mask_token, size, idx_keep, embedded))
        predicted = other.decoder.predict(ours.get_at_index(tokens, idx_mask))
        return ours.patch_mse_loss(predicted, images, other.patch_size, idx_mask - 1)

    steps = ((model, lambda images: F.mse_loss(*model(images))), (other, loss))
    curves = []
    for trained, loss_of in steps:
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
        torch.manual_seed(1)
        curves.append([])
        for _ in range(20):
            value = loss_of(IMAGES)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            curves[-1].append(value.item())
    assert curves[1][0] == pytest.approx(curves[0][0], rel=1e-6, abs=0)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4, abs=0)
