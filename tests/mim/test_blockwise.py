"""Blockwise masks: how much is masked, and what they are made of."""

import math

import pytest
import torch

from bimkern.mim.masking.blockwise import _FAILURES, Blockwise, _uniform

GRID = (14, 14)
IDS = torch.arange(200)


def test_exact_masks_mask_the_same_number_in_every_image():
    (view,) = Blockwise(ratio=0.4).views(IDS, GRID, 1, seed=0)
    assert view.masked.sum(1).unique().tolist() == [78]  # round(196 * 0.4), MaskFeat
    assert view.keep.shape == (len(IDS), 196 - 78)
    assert (view.masked.gather(1, view.keep) == 0).all()


def test_published_masks_stop_at_or_below_the_target():
    (view,) = Blockwise(ratio=0.4, exact=False).views(IDS, GRID, 1, seed=0)
    counts = view.masked.sum(1)
    assert counts.max() <= 78
    assert counts.min() < 78  # which is why exact masks exist
    assert counts.mean() > 70
    assert view.keep.shape == (len(IDS), 196)


def test_exact_masks_contain_the_published_ones():
    (exact,), (published,) = (Blockwise(ratio=0.4, exact=exact).views(IDS, GRID, 1, seed=0) for exact in (True, False))
    assert (exact.masked >= published.masked).all()


def one_mask(masker, draw_id, grid, seed):
    """Algorithm 1 of BEiT for one image, with the numbers that `rectangles` draws."""
    masked, failures, target = torch.zeros(grid, dtype=torch.bool), 0, masker.num_masked(grid)
    smallest, log_aspect = int(target * masker.min_share), math.log(masker.aspect)
    numbers = torch.stack(_uniform(torch.tensor([draw_id]), seed)).squeeze(-1)  # [4, A]
    for u_area, u_aspect, u_top, u_left in numbers.unbind(1):
        remaining = target - int(masked.sum())
        area, aspect = smallest + u_area * (remaining - smallest), torch.exp(log_aspect - 2 * log_aspect * u_aspect)
        height, width = int((area * aspect).sqrt().round()), int((area / aspect).sqrt().round())
        top, left = int((u_top * (grid[0] - height + 1)).floor()), int((u_left * (grid[1] - width + 1)).floor())
        added = torch.zeros_like(masked)
        if height < grid[0] and width < grid[1]:
            added[top : top + height, left : left + width] = True
        added &= ~masked
        if 0 < added.sum() <= remaining:
            masked, failures = masked | added, 0
        else:
            failures += 1
        if failures == _FAILURES:
            break
    return masked.flatten()


@pytest.mark.parametrize("grid", [GRID, (5, 9)])
def test_all_images_at_once_get_the_masks_of_one_after_another(grid):
    masker, ids = Blockwise(ratio=0.4), torch.randint(0, 2**40, (20,))
    expected = torch.stack([one_mask(masker, int(i), grid, seed=3) for i in ids])
    assert torch.equal(masker.rectangles(ids, grid, seed=3), expected)


def test_masked_patches_lie_together():
    """Nearly every masked patch has a masked neighbor; of a mask drawn patch by patch, 13 % have none."""
    masked = Blockwise(ratio=0.4).rectangles(IDS, GRID, seed=0).view(-1, *GRID)
    padded = torch.nn.functional.pad(masked, (1, 1, 1, 1))
    neighbors = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]
    assert (masked & ~neighbors).sum() < 0.01 * masked.sum()


def test_no_place_is_preferred():
    share = Blockwise(ratio=0.4).rectangles(torch.arange(2000), GRID, seed=0).float().mean(0).view(*GRID)
    torch.testing.assert_close(share, share.flip(0), rtol=0, atol=5 * (0.4 * 0.6 / 2000) ** 0.5 * 2**0.5)
    torch.testing.assert_close(share, share.flip(1), rtol=0, atol=5 * (0.4 * 0.6 / 2000) ** 0.5 * 2**0.5)


def test_a_mask_depends_on_seed_and_sample_alone():
    masker = Blockwise(ratio=0.4)
    whole = masker.views(IDS, GRID, 1, seed=0)[0].masked
    assert torch.equal(whole[100:], masker.views(IDS[100:], GRID, 1, seed=0)[0].masked)
    assert not torch.equal(whole, masker.views(IDS, GRID, 1, seed=1)[0].masked)
    assert len(whole.unique(dim=0)) == len(whole)


def test_small_and_oblong_grids():
    (view,) = Blockwise(ratio=0.4).views(IDS, (4, 7), 1, seed=0)
    assert view.masked.sum(1).unique().tolist() == [11]


def test_says_what_is_wrong():
    for ratio in (0, 1):
        with pytest.raises(ValueError, match=rf"Blockwise: ratio must be in \(0, 1\), got {ratio}"):
            Blockwise(ratio=ratio)
    with pytest.raises(ValueError, match=r"Blockwise: min_share must be in \[0, 1\), got -0.1"):
        Blockwise(ratio=0.4, min_share=-0.1)
    with pytest.raises(ValueError, match=r"Blockwise: aspect must be in \(0, 1\], got 0"):
        Blockwise(ratio=0.4, aspect=0)


@pytest.mark.parametrize(("ratio", "masked"), [(0.001, 0), (0.99, 16)])
def test_what_rounds_to_nothing_or_everything_is_refused(ratio, masked):
    masker = Blockwise(ratio=ratio)
    message = f"ratio must mask at least 1 and leave at least 1 of 16 patches, got {ratio}, which masks {masked}"
    for refused in (lambda: masker.entering((4, 4), 1), lambda: masker.views(IDS, (4, 4), 1, 0)):
        with pytest.raises(ValueError, match=f"Blockwise: {message}"):
            refused()


def test_published_masks_of_a_single_row_are_refused():
    """No rectangle fits there, so that nothing would ever be masked."""
    assert Blockwise(ratio=0.4).views(IDS, (1, 10), 1, seed=0)[0].masked.sum(1).unique().tolist() == [4]
    with pytest.raises(ValueError, match="Blockwise: exact must be True for 1 x 10 patches, got False"):
        Blockwise(ratio=0.4, exact=False).entering((1, 10), 1)
