"""Blockwise masks: how much is masked, and what they are made of."""

import pytest
import torch

from bimkern.mim.masking.blockwise import Blockwise

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
