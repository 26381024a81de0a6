"""Maskers against the published counts, and the options that the BIM paper leaves open."""

from itertools import pairwise

import pytest
import torch

from bimkern.mim.masking.masker import num_kept
from bimkern.mim.masking.random import RandomDrop

RATIOS = (0.40, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90)
KEPT = {
    196: (117, 78, 68, 58, 49, 39, 29, 19),
    64: (38, 25, 22, 19, 16, 12, 9, 6),
    49: (29, 19, 17, 14, 12, 9, 7, 4),
    16: (9, 6, 5, 4, 4, 3, 2, 1),
    256: (153, 102, 89, 76, 64, 51, 38, 25),
    100: (60, 40, 35, 30, 25, 19, 15, 9),
}
GROWING = (0.65, 0.70, 0.80, 0.85)
IDS = torch.arange(6)


@pytest.mark.parametrize("num_tokens", KEPT)
def test_counts_follow_the_published_truncation(num_tokens):
    assert tuple(num_kept(num_tokens, ratio) for ratio in RATIOS) == KEPT[num_tokens]


def test_growing_mask_leaves_68_58_39_29_of_196():
    views = RandomDrop(ratios=GROWING).views(IDS, (14, 14), 4, seed=0)
    assert [view.keep.shape[1] for view in views] == [68, 58, 39, 29]
    assert [int(view.masked[0].sum()) for view in views] == [128, 138, 157, 167]


def test_a_masked_patch_stays_masked():
    views = RandomDrop(ratios=GROWING).views(IDS, (14, 14), 4, seed=0)
    for before, after in pairwise(views):
        assert torch.equal(before.keep.gather(1, after.within), after.keep)
        assert (after.masked >= before.masked).all()


def test_one_ratio_serves_all_stages():
    views = RandomDrop(ratios=(0.75,)).views(IDS, (14, 14), 4, seed=0)
    assert all(view.keep is views[0].keep and view.masked is views[0].masked for view in views)  # drawn once
    assert all(view.within is None for view in views)


def test_entering_drops_tokens_but_never_the_prefix():
    first, second = RandomDrop(ratios=(0.5, 0.75)).views(IDS, (4, 4), 2, seed=0)
    ids = torch.cat([torch.full((6, 1), -1), first.keep], dim=1).unsqueeze(-1).float()  # cls is -1
    entered = second.enter(ids, num_prefix=1)
    assert torch.equal(entered[..., 0], torch.cat([torch.full((6, 1), -1.0), second.keep.float()], dim=1))


def test_decoder_sees_tokens_before_the_drop_by_default():
    views = RandomDrop(ratios=GROWING).views(IDS, (14, 14), 4, seed=0)
    tokens = torch.randn(6, 1 + 68, 4)
    assert torch.equal(views[0].decoded, views[0].keep)
    assert views[0].show(tokens, 1) is tokens


def test_decoder_may_see_tokens_after_the_drop():
    views = RandomDrop(ratios=GROWING, decoder_sees="after_drop").views(IDS, (14, 14), 4, seed=0)
    assert torch.equal(views[0].decoded, views[1].keep)
    assert views[0].show(torch.randn(6, 1 + 68, 4), 1).shape == (6, 1 + 58, 4)
    assert int(views[0].masked[0].sum()) == 128  # the loss is still that of the stage's own mask
    assert torch.equal(views[3].decoded, views[3].keep)  # nothing is dropped after the last


def test_loss_may_use_the_first_mask():
    views = RandomDrop(ratios=GROWING, loss_mask="first").views(IDS, (14, 14), 4, seed=0)
    assert all(torch.equal(view.masked, views[0].masked) for view in views)


def test_rows_cut_every_index():
    views = RandomDrop(ratios=GROWING, decoder_sees="after_drop").views(IDS, (14, 14), 4, seed=0)
    part = views[1].rows(slice(2, 4))
    assert torch.equal(part.keep, views[1].keep[2:4])
    assert torch.equal(part.within, views[1].within[2:4])
    assert torch.equal(part.masked, views[1].masked[2:4])
    assert torch.equal(part.decoded_within, views[1].decoded_within[2:4])


def test_says_what_is_wrong():
    for ratio in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"RandomDrop: ratios must be in \(0, 1\), got \({ratio},\)"):
            RandomDrop(ratios=(ratio,))
    with pytest.raises(ValueError, match="RandomDrop: ratios must not fall"):
        RandomDrop(ratios=(0.8, 0.7))
    with pytest.raises(ValueError, match=r"RandomDrop: ratios must hold one value, or one per stage \(4\), got 2"):
        RandomDrop(ratios=(0.7, 0.8)).entering((14, 14), 4)


@pytest.mark.parametrize(("ratios", "refused", "masked"), [((0.5, 0.9), 0.9, 4), ((1e-17, 0.5), 1e-17, 0)])
def test_what_masks_nothing_or_everything_of_a_stage_is_refused(ratios, refused, masked):
    masker = RandomDrop(ratios=ratios)
    message = f"ratios must mask at least 1 and leave at least 1 of 4 patches, got {refused}, which masks {masked}"
    for call in (lambda: masker.entering((2, 2), 2), lambda: masker.views(IDS, (2, 2), 2, 0)):
        with pytest.raises(ValueError, match=f"RandomDrop: {message}"):
            call()
