"""Mask units that are left out: one mask for a batch or one for each image, on the host and on a device."""

from dataclasses import replace

import pytest
import torch

from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import RandomUnits, SharedUnits
from bimkern.mim.model import MIM
from bimkern.models.swin import SwinConfig
from bimkern.recipes import RECIPES

IDS = torch.arange(5)
METHOD = RECIPES["localmim_swin_tiny_test"].config.method  # three stages: 16 x 16, 8 x 8 and 4 x 4 tokens
PER_IMAGE = replace(METHOD, masker=RandomUnits(ratio=0.75, mask_unit=4))
every_masker = pytest.mark.parametrize("method", [METHOD, PER_IMAGE], ids=["shared", "per image"])


def tensors_of(view):
    found = []
    for part in (view, view.plan):
        part.map(lambda tensor: found.append(tensor) or tensor)
    return found


def images_for(count):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize(("grid", "visible"), [((56, 56), 12), ((48, 48), 9), ((40, 56), 8)])
@pytest.mark.parametrize("masker", [RandomUnits, SharedUnits])
def test_they_leave_the_published_number_of_whole_units(masker, grid, visible):
    (view,) = masker(ratio=0.75, mask_unit=8).views(IDS, grid, 1, seed=0)
    cells = view.masked.view(-1, grid[0] // 8, 8, grid[1] // 8, 8).transpose(2, 3).flatten(3)
    assert torch.equal(cells.amin(-1), cells.amax(-1))
    assert (cells[..., 0] == 0).sum((1, 2)).tolist() == [visible] * len(IDS)
    assert torch.equal(view.keep, view.keep.sort(dim=1).values)
    assert (view.masked.gather(1, view.keep) == 0).all()
    assert masker(ratio=0.75, mask_unit=8).entering(grid, 3) == [64 * visible] * 3


def test_a_batch_has_the_mask_of_its_first_image():
    shared, own = (masker(ratio=0.75, mask_unit=2) for masker in (SharedUnits, RandomUnits))
    of_batch = shared.views(IDS, (16, 16), 1, seed=1)[0].keep
    of_images = own.views(IDS, (16, 16), 1, seed=1)[0].keep
    assert torch.equal(of_batch, of_images[:1].expand(5, -1))
    assert len(of_images.unique(dim=0)) > 1


@every_masker
def test_a_head_is_shown_the_tokens_that_its_stage_puts_out(method):
    views = method.views(IDS, (16, 16), 0)
    for stage, view in enumerate(views):
        grid = method.grid(stage, (16, 16))
        weights = view.weights(grid)
        assert torch.equal((weights == 0).nonzero()[:, 1].view(5, -1), view.decoded)
    assert len({id(view.keep) for view in views}) == 1


@every_masker
def test_a_view_of_some_images_is_that_of_the_whole(method):
    model, images = MIM(method).double(), images_for(5)
    views = model.views(images, IDS, 0)
    tokens = part = images
    for stage, view in enumerate(views):
        tokens = model.encode(stage, tokens, view)
        part = model.encode(stage, part[1:3] if stage == 0 else part, view.rows(slice(1, 3)))
        torch.testing.assert_close(part, tokens[1:3])


@every_masker
def test_masks_and_plans_are_those_of_the_host_on_any_device(method, device):
    model, images = MIM(method), images_for(5)
    there = MIM(method).to(device).views(images.to(device), IDS, 7)
    for view, moved in zip(model.views(images, IDS, 7), there, strict=True):
        here, found = tensors_of(view), tensors_of(moved)
        assert all(tensor.device.type == device.type for tensor in found)
        assert all(torch.equal(tensor, other.cpu()) for tensor, other in zip(here, found, strict=True))


def test_stages_share_one_plan():
    views = MIM(METHOD).views(images_for(2), IDS[:2], 0)
    assert len({id(view.plan) for view in views}) == 1
    assert [len(level.plain.members) for level in views[0].plan.levels] == [1, 1, 1]


def test_what_is_masked_does_not_reach_the_encoder():
    model, images = MIM(PER_IMAGE), images_for(3)
    view = model.views(images, IDS[:3], 0)[0]
    masked = view.masked_share((64, 64)).expand_as(images) > 0
    altered = torch.where(masked, 255 - images, images)
    assert torch.equal(model.encode(0, altered, view), model.encode(0, images, view))


@pytest.mark.parametrize(
    ("masker", "unit"), [(RandomDrop(ratios=(0.75,)), 1), (SharedUnits(ratio=0.75, mask_unit=2), 2)]
)
def test_units_that_merging_would_split_are_refused(masker, unit):
    message = (
        f"Method: {type(masker).__name__} leaves out mask units of {unit} x {unit} patches, but Swin merges 4 x 4 of "
        f"them into a token; take a masker whose mask_unit is a multiple of 4"
    )
    with pytest.raises(ValueError, match=message):
        replace(METHOD, masker=masker)


def test_a_swin_of_one_stage_takes_any_mask():
    encoder = SwinConfig(image_size=32, width=16, depths=(4,), num_heads=(2,), window=4)
    growing = RandomDrop(ratios=(0.5, 0.75))
    method = replace(METHOD, encoder=encoder, taps=(1, 3), masker=growing, heads=METHOD.heads[:1])
    model, images = MIM(method), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    views = model.views(images, IDS[:2], 0)
    tokens = images
    for stage, (view, count) in enumerate(zip(views, (32, 16), strict=True)):
        tokens = model.encode(stage, tokens, view)
        assert tokens.shape == (2, count, 16)


@pytest.mark.parametrize("masker", [RandomUnits, SharedUnits])
def test_says_what_is_wrong(masker):
    with pytest.raises(ValueError, match=f"{masker.__name__}: mask_unit must divide the 14 x 14 patches, got 8"):
        masker(ratio=0.75, mask_unit=8).entering((14, 14), 1)
    with pytest.raises(
        ValueError, match=f"{masker.__name__}: ratio must mask at least 1 and leave at least 1 of 4 mask"
    ):
        masker(ratio=0.9, mask_unit=8).entering((16, 16), 1)
