"""The sparse Swin computes what timm's Swin does with masked tokens kept out, and the dense one what timm's does."""

import pytest
import timm_swin
import torch
from small_swin import build, sparse_view, taps

from bimkern.mim.masking.units import RandomUnits, SharedUnits
from bimkern.models.encoder import WholeImages
from bimkern.models.windows import coarsened

# Windows of 7 do not divide the grids of 192 pixels, nor all of the rectangle's: timm's own pads there, and what pads
# takes part in its softmax. It is kept out here, as in our Swin.
DIVIDED = [(7, (224, 224)), (14, (224, 224)), (6, (192, 192))]
SIZES = [*DIVIDED, (7, (192, 192)), (14, (192, 192)), (7, (160, 288))]
sizes = pytest.mark.parametrize(("window", "size"), SIZES, ids=str)


def grids(config, size):
    ends = [sum(config.depths[: i + 1]) for i in range(len(config.depths))]
    return [config.level(end).grid(*size) for end in ends]


def compare(model, size, keep, images):
    """Compare features of visible tokens behind every stage, and all gradients, with timm's."""
    theirs, grid = timm_swin.like(model, size), model.config.level(0).grid(*size)
    visible = torch.zeros(len(images), grid[0] * grid[1], dtype=torch.bool).scatter(1, keep, True)
    timm_swin.keep_out(theirs, visible.unflatten(1, grid))
    ours = taps(model, images, sparse_view(model, keep, grid))
    loss = torch.zeros((), dtype=torch.float64)
    for mine, other, coarse in zip(ours, timm_swin.taps(theirs, images), grids(model.config, size), strict=True):
        kept = coarsened(keep, grid, coarse)[..., None].expand_as(mine)
        other = other.flatten(1, 2).gather(1, kept)
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
        weight = torch.randn_like(mine)
        loss = loss + ((mine + other) * weight).sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.shape == gradients[name].shape:  # tables that are resized have tests of their own
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-8)


@sizes
@pytest.mark.parametrize("masker", [SharedUnits, RandomUnits])
def test_visible_tokens_are_those_of_a_dense_swin_that_sees_no_others(window, size, masker):
    model = build(window)
    grid = size[0] // 4, size[1] // 4
    keep = masker(ratio=0.75, mask_unit=8).views(torch.arange(2), grid, 1, seed=3)[0].keep
    assert (keep[0].tolist() == keep[1].tolist()) == (masker is SharedUnits)
    compare(model, size, keep, torch.randn(2, 3, *size, dtype=torch.float64))


@pytest.mark.parametrize("num_units", [1, 48, 49])
def test_any_number_of_units_may_be_visible(num_units):
    units = torch.rand(2, 49).argsort(1)[:, :num_units]
    patches = torch.arange(56 * 56).view(7, 8, 7, 8).transpose(1, 2).reshape(49, 64)
    keep = patches[units].flatten(1).sort(1).values
    compare(build(7), (224, 224), keep, torch.randn(2, 3, 224, 224, dtype=torch.float64))


@pytest.mark.parametrize(("window", "size"), DIVIDED, ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_with_nothing_masked_it_is_timms(window, size, sparse):
    model, images = build(window), torch.randn(2, 3, *size, dtype=torch.float64)
    grid = size[0] // 4, size[1] // 4
    view = WholeImages(grid)
    if sparse:
        view = sparse_view(model, torch.arange(grid[0] * grid[1]).expand(2, -1), grid)
    with torch.no_grad():
        for mine, theirs in zip(
            taps(model, images, view), timm_swin.taps(timm_swin.like(model, size), images), strict=True
        ):
            torch.testing.assert_close(mine, theirs.flatten(1, 2), rtol=1e-9, atol=1e-9)


def test_a_batch_of_two_masks_is_two_batches_of_one():
    model, images = build(7), torch.randn(2, 3, 224, 224, dtype=torch.float64)
    keep = RandomUnits(ratio=0.75, mask_unit=8).views(torch.arange(2), (56, 56), 1, seed=0)[0].keep
    together = taps(model, images, sparse_view(model, keep, (56, 56)))
    for i in range(2):
        alone = taps(model, images[i : i + 1], sparse_view(model, keep[i : i + 1], (56, 56)))
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[i : i + 1], part, rtol=1e-12, atol=1e-12)
