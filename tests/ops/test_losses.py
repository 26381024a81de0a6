"""pixel_targets and masked_loss."""

import pytest
import torch
from torch.autograd import gradcheck

from bimkern.ops import masked_loss, pixel_targets


def test_patches_are_raster_ordered_with_channels_fastest(device):
    images = torch.arange(2 * 3 * 4 * 6, device=device).reshape(2, 3, 4, 6).float()
    vectors = pixel_targets(images, 2, normalize=False)
    assert vectors.shape == (2, 6, 12)
    for patch, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        cell = images[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(vectors[1, patch], cell.permute(1, 2, 0).flatten())


def test_normalised_patches_have_unbiased_variance(device):
    images = torch.randn(2, 3, 8, 8, device=device, dtype=torch.float64) * 5 + 3
    raw = pixel_targets(images, 4, normalize=False)
    mean = raw.mean(-1, keepdim=True)
    variance = (raw - mean).square().sum(-1, keepdim=True) / (48 - 1)
    expected = (raw - mean) / (variance + 1e-6).sqrt()
    torch.testing.assert_close(pixel_targets(images, 4), expected)


@pytest.mark.parametrize("value", [0.1, -1.7, 1e4])
def test_a_constant_patch_is_exactly_zero(device, value):
    assert not pixel_targets(torch.full((1, 3, 16, 16), value, device=device), 16).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_give_float32_targets(device, dtype):
    images = torch.randn(1, 3, 8, 8, device=device).to(dtype)
    assert torch.equal(pixel_targets(images, 4), pixel_targets(images.float(), 4))


def test_pixel_targets_says_what_is_wrong(device):
    images = torch.zeros(1, 3, 8, 10, device=device)
    with pytest.raises(ValueError, match=r"pixel_targets: images must be .* of patch=4, got \[1, 3, 8, 10\]"):
        pixel_targets(images, 4)
    with pytest.raises(ValueError, match="pixel_targets: normalize needs patches of at least 2 values, got patch=1"):
        pixel_targets(images[:, :1], 1)
    with pytest.raises(TypeError, match=r"pixel_targets: images must be float32, .*, got uint8"):
        pixel_targets(images.byte(), 2)


def sample(device, dtype=torch.float64):
    pred = torch.randn(4, 9, 6, device=device, dtype=dtype, requires_grad=True)
    target = torch.randn(4, 9, 6, device=device, dtype=dtype)
    weight = (torch.rand(4, 9, device=device) < 0.5).to(dtype)
    weight[0, 0] = 1
    return pred, target, weight


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_loss_is_the_mean_over_hidden_tokens(device, kind):
    pred, target, weight = sample(device)
    difference = (pred - target)[weight.bool()]
    expected = difference.square().mean() if kind == "l2" else difference.abs().mean()
    torch.testing.assert_close(masked_loss(pred, target, weight, kind), expected)


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_loss_gradients(device, kind):
    pred, target, weight = sample(device)
    assert gradcheck(lambda pred: masked_loss(pred, target, weight * 0.25, kind), (pred,))


def test_visible_predictions_do_not_count(device):
    pred, target, weight = sample(device)
    changed = pred + 100 * (1 - weight).unsqueeze(-1)
    assert torch.equal(masked_loss(pred, target, weight), masked_loss(changed, target, weight))


def test_parts_with_the_whole_denominator_add_up(device):
    pred, target, weight = sample(device)
    parts = [
        masked_loss(pred[i : i + 1], target[i : i + 1], weight[i : i + 1], denominator=weight.sum()) for i in range(4)
    ]
    torch.testing.assert_close(sum(parts), masked_loss(pred, target, weight))


def test_all_zero_weight_gives_zero_and_zero_gradients(device):
    pred, target, weight = sample(device)
    loss = masked_loss(pred, target, torch.zeros_like(weight))
    loss.backward()
    assert loss == 0
    assert not pred.grad.any()


def test_half_predictions_get_half_gradients_from_a_float32_loss(device):
    pred, target, weight = sample(device, torch.float32)
    half = pred.detach().bfloat16().requires_grad_()
    loss = masked_loss(half, target, weight)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16


def test_masked_loss_says_what_is_wrong(device):
    pred, target, weight = sample(device)
    with pytest.raises(ValueError, match=r"masked_loss: target must be \[B=4, N=9, P=6\], got \[3, 9, 6\]"):
        masked_loss(pred, target[1:], weight)
    with pytest.raises(ValueError, match="masked_loss: kind must be one of l2, l1, got 'huber'"):
        masked_loss(pred, target, weight, "huber")
    with pytest.raises(ValueError, match=r"masked_loss: denominator must be a scalar tensor, got shape \[4\]"):
        masked_loss(pred, target, weight, denominator=weight.sum(1))
    with pytest.raises(TypeError, match="masked_loss: weight must be float64, got float32"):
        masked_loss(pred, target, weight.float())
