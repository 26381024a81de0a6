"""Losses over masked patches: SimMIM's, of images, and that of mmselfsup's heads; and what stays the host's."""

import pytest
import torch
from torch import nn

from bench.hosts.simmim import MapEncoder, PixelReconstructionLoss, SimMIM
from bimkern.dropin import DropinError, patch


@pytest.fixture
def simmim():
    """A stride of 8 over patches of 4: each token predicts four patches."""
    model = SimMIM(MapEncoder(32, 4, 3, 16, 1, 2), 4)
    pooled = nn.Sequential(nn.Conv2d(16, 16, 2, 2), nn.Conv2d(16, 3 * 64, 1), nn.PixelShuffle(8))
    model.decoder = pooled
    model.encoder_stride = 8
    return model


def outcome(model, *args):
    try:
        return model(*args)
    except (RuntimeError, TypeError) as error:
        return str(error)


def assert_same(got, expected):
    if isinstance(expected, str):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
@pytest.mark.parametrize("masked", ["some", "none", "all"])
def test_masks_of_simmim(simmim, dtype, masked):
    mask = {"some": torch.rand(2, 8, 8) < 0.6, "none": torch.zeros(2, 8, 8), "all": torch.ones(2, 8, 8)}[masked]
    x, mask = torch.rand(2, 3, 32, 32), mask.to(dtype)
    expected = simmim(x, mask)
    patch(simmim)
    assert_same(simmim(x, mask), expected)


def test_gradients_of_simmim(simmim):
    x, mask = torch.rand(2, 3, 32, 32), torch.rand(2, 8, 8) < 0.6
    expected = torch.autograd.grad(simmim(x, mask), list(simmim.parameters()))
    patch(simmim)
    for ours, theirs in zip(torch.autograd.grad(simmim(x, mask), list(simmim.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_integers_are_a_target_as_in_the_host(simmim):
    encode = simmim.encoder.forward
    simmim.encoder.forward = lambda x, mask: encode(x / 255, mask)
    x, mask = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), torch.ones(2, 8, 8)
    expected = simmim(x, mask)
    patch(simmim)
    assert torch.equal(simmim(x, mask), expected)


@pytest.mark.parametrize(
    ("x", "mask"),
    [
        (torch.rand(2, 3, 32, 32, requires_grad=True), torch.ones(2, 8, 8)),
        (torch.rand(2, 4, 32, 32), torch.ones(2, 8, 8)),
        (torch.rand(2, 3, 36, 32), torch.ones(2, 8, 8)),
        (torch.rand(2, 3, 32, 32), torch.ones(1, 8, 8)),
    ],
)
def test_what_simmim_gets_wrong_stays_its_own(simmim, x, mask):
    expected = outcome(simmim, x, mask)
    patch(simmim)
    assert_same(outcome(simmim, x, mask), expected)


def test_a_decoder_of_another_size_is_refused(simmim):
    patch(simmim)
    simmim.decoder = nn.Sequential(nn.Conv2d(16, 48, 1), nn.PixelShuffle(2))
    with pytest.raises(ValueError, match=r"^SimMIM: the decoder must return images \[2, 3, 32, 32\], got"):
        simmim(torch.rand(2, 3, 32, 32), torch.ones(2, 8, 8))


class Squared(SimMIM):
    def forward(self, x, mask):
        pixels = mask.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2)[:, None]
        return ((x - self.decoder(self.encoder(x, mask))) ** 2 * pixels).sum() / (pixels.sum() + 1e-5) / self.in_chans


class AllPixels(SimMIM):
    def forward(self, x, mask):
        return (x - self.decoder(self.encoder(x, mask))).abs().mean()


@pytest.mark.parametrize("fork", [Squared, AllPixels])
def test_another_loss_stays(fork):
    model = fork(MapEncoder(32, 4, 3, 16, 1, 2), 4)
    with pytest.raises(DropinError, match=r"can be replaced: forward computes other results than its replacement$"):
        patch(model)
    assert type(model) is fork


@pytest.mark.parametrize("criterion", ["L1", "L2"])
@pytest.mark.parametrize("channel", [None, 3])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_masked_tokens(criterion, channel, dtype):
    head = PixelReconstructionLoss(criterion, channel)
    pred, target = torch.randn(2, 9, 12, requires_grad=True), torch.randn(2, 9, 12)
    mask = (torch.rand(2, 9) < 0.6).to(dtype)
    expected = head(pred, target, mask)
    (slope,) = torch.autograd.grad(expected, pred)
    assert set(patch(head).replaced) == {"forward"}
    got = head(pred, target, mask)
    assert_same(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, pred)[0], slope)


def test_rows_that_do_not_count_may_hold_anything():
    head = PixelReconstructionLoss("L2")
    patch(head)
    pred, mask = torch.randn(1, 3, 4), torch.tensor([[True, False, True]])
    pred[0, 1] = torch.nan
    assert torch.isfinite(head(pred, torch.zeros(1, 3, 4), mask))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("pred", "target", "mask"),
    [
        (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), (torch.rand(2, 1, 8, 8) < 0.6).long()),
        (torch.randn(2, 9, 4), torch.randn(2, 9, 4), None),
        (torch.randn(2, 9, 4), torch.randn(2, 9, 4, requires_grad=True), torch.ones(2, 9)),
        (torch.randn(2, 9, 4), torch.randn(2, 1, 4), torch.ones(2, 9)),
        (torch.randn(2, 9, 4), torch.randn(2, 9, 4), torch.ones(2, 8)),
        (torch.randn(2, 9, 4), torch.randn(2, 9, 4), torch.full((2, 9), 2)),
    ],
)
def test_other_uses_of_the_head_are_the_hosts(pred, target, mask):
    head = PixelReconstructionLoss("L2")
    expected = outcome(head, pred, target, mask)
    patch(head)
    assert_same(outcome(head, pred, target, mask), expected)


def test_a_patch_of_two_sides_stays(simmim):
    simmim.patch_size = (4, 4)
    with pytest.raises(DropinError, match=r"patch_size must be an int, got \(4, 4\)$"):
        patch(simmim)


def test_a_penalty_of_its_own_stays():
    head = PixelReconstructionLoss("L2")
    head.penalty = nn.SmoothL1Loss(reduction="none")
    pred, target, mask = torch.randn(2, 9, 4), torch.randn(2, 9, 4), torch.ones(2, 9)
    expected = head(pred, target, mask)
    with pytest.raises(DropinError, match=r"penalty must be L1Loss or MSELoss"):
        patch(head)
    assert torch.equal(head(pred, target, mask), expected)
