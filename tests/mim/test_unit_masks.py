"""Maskers of square mask units, which are filled in: counts, positions, and views that every stage shares."""

import pytest
import torch

from bimkern.mim.masking.units import BlockPixels, TokenReplace

IDS = torch.arange(5)


def masked_of(masker, grid, ids=IDS, seed=0):
    view, *others = masker.views(ids, grid, 3, seed)
    assert all(other is view for other in others)
    assert view.decoded is None
    assert view.within is None
    return view.masked.view(-1, *grid)


@pytest.mark.parametrize(("grid", "units", "masked"), [((12, 12), 36, 22), ((14, 14), 49, 30)])
def test_token_replace_masks_the_published_number_of_units(grid, units, masked):
    """22 of 36 at 192 pixels, 30 of 49 at 224: a share that is not whole is raised."""
    assert masked_of(TokenReplace(ratio=0.6, mask_unit=2), grid).sum((1, 2)).tolist() == [4 * masked] * len(IDS)
    assert TokenReplace(ratio=0.6, mask_unit=2).num_visible(units) == units - masked


@pytest.mark.parametrize(("grid", "visible"), [((8, 8), 16), ((4, 4), 4)])
def test_block_pixels_keep_the_published_number(grid, visible):
    assert (masked_of(BlockPixels(ratio=0.75), grid) == 0).sum((1, 2)).tolist() == [visible] * len(IDS)


@pytest.mark.parametrize("unit", [2, 3])
def test_units_are_masked_whole(unit):
    masked = masked_of(TokenReplace(ratio=0.5, mask_unit=unit), (6, 12))
    cells = masked.unflatten(2, (-1, unit)).unflatten(1, (-1, unit)).transpose(2, 3).flatten(3)
    assert torch.equal(cells.amin(-1), cells.amax(-1))
    assert 0 < masked.mean() < 1


def test_keep_lists_the_visible_patches_in_order():
    view = TokenReplace(ratio=0.6, mask_unit=2).views(IDS, (14, 14), 1, seed=3)[0]
    assert torch.equal(view.keep, view.keep.sort(dim=1).values)
    assert torch.equal(view.masked.scatter(1, view.keep, 1), torch.ones_like(view.masked))
    assert (view.masked.gather(1, view.keep) == 0).all()


def test_a_mask_depends_on_seed_and_sample_alone():
    masker = BlockPixels(ratio=0.75)
    whole = masked_of(masker, (8, 8))
    assert torch.equal(whole[3:], masked_of(masker, (8, 8), IDS[3:]))
    assert not torch.equal(whole, masked_of(masker, (8, 8), seed=1))


def test_all_tokens_enter_every_stage():
    assert TokenReplace(ratio=0.6, mask_unit=2).entering((14, 14), 4) == [196] * 4


@pytest.mark.parametrize("masker", [TokenReplace, BlockPixels])
def test_says_what_is_wrong(masker):
    name = masker.__name__
    for ratio in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"{name}: ratio must be in \(0, 1\), got {ratio}"):
            masker(ratio=ratio)
    with pytest.raises(ValueError, match=f"{name}: mask_unit must be at least 1 patch, got 0"):
        masker(ratio=0.5, mask_unit=0)
    with pytest.raises(ValueError, match=f"{name}: mask_unit must divide the 14 x 15 patches, got 2"):
        masker(ratio=0.5, mask_unit=2).views(IDS, (14, 15), 1, 0)


@pytest.mark.parametrize(
    ("masker", "ratio", "masked"),
    [(BlockPixels, 0.9, 4), (BlockPixels, 1e-17, 0), (TokenReplace, 0.9, 4), (TokenReplace, 0.76, 4)],
)
def test_what_masks_nothing_or_everything_is_refused(masker, ratio, masked):
    masker = masker(ratio=ratio, mask_unit=2)
    message = f"ratio must mask at least 1 and leave at least 1 of 4 mask units, got {ratio}, which masks {masked}"
    for refused in (lambda: masker.entering((4, 4), 1), lambda: masker.views(IDS, (4, 4), 1, 0)):
        with pytest.raises(ValueError, match=f"{type(masker).__name__}: {message}"):
            refused()
