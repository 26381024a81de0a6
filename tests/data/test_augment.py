"""Order, crops and flips are functions of (seed, epoch, sample id)."""

import math
import re

import numpy as np
import pytest

from bimkern.data.augment import RandomResizedCrop, draw_ids, epoch_order, sample_sequence

CROP = RandomResizedCrop()


def ids(count, epoch=0):
    return draw_ids(np.full(count, epoch, dtype=np.int64), np.arange(count, dtype=np.int64))


def sizes(count, width, height):
    return np.tile(np.array([[width, height]], dtype=np.int64), (count, 1))


def test_an_epoch_visits_every_sample_once():
    first, second = epoch_order(101, 7, 0), epoch_order(101, 7, 1)
    assert sorted(first) == sorted(second) == list(range(101))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epoch_order(101, 8, 0))


@pytest.mark.parametrize("batch", [1, 3, 7, 40])
def test_the_stream_does_not_depend_on_how_it_is_cut(batch):
    whole = sample_sequence(0, 120, 17, seed=5)
    parts = [sample_sequence(first, min(batch, 120 - first), 17, seed=5) for first in range(0, 120, batch)]
    for k in range(2):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), whole[k])
    assert np.array_equal(whole[0], np.arange(120) // 17)


def test_draw_ids_name_sample_and_epoch():
    names = [int(draw_ids(np.int64(e), np.int64(s))) for e in range(3) for s in (0, 1, 2**40 - 1)]
    assert len(set(names)) == 9


@pytest.mark.parametrize(("width", "height"), [(640, 427), (1, 1), (2000, 3), (3, 2000), (8, 8)])
def test_boxes_lie_inside_the_image(width, height):
    left, top, w, h = CROP.boxes(ids(500), sizes(500, width, height), seed=0, size=16).T
    assert (w >= 1).all()
    assert (h >= 1).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()


def test_boxes_have_the_asked_area_and_aspect():
    boxes = CROP.boxes(ids(4000), sizes(4000, 500, 500), seed=1, size=16)
    area = boxes[:, 2] * boxes[:, 3] / 250000
    aspect = boxes[:, 2] / boxes[:, 3]
    assert 0.195 < area.min() < 0.22
    assert 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.78
    assert 1.29 < aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.02
    assert abs((boxes[:, 0] - (500 - boxes[:, 2]) / 2).mean()) < 3  # centered on average


def test_an_image_that_no_draw_fits_gets_the_largest_central_box():
    boxes = CROP.boxes(ids(10), sizes(10, 2000, 3), seed=0, size=16)
    assert (boxes == (998, 0, 4, 3)).all()


def test_a_box_depends_on_its_own_sample_alone():
    shapes = sizes(50, 300, 200)
    together = CROP.boxes(ids(50), shapes, seed=2, size=16)
    assert np.array_equal(CROP.boxes(ids(50)[20:21], shapes[:1], seed=2, size=16)[0], together[20])
    assert not np.array_equal(CROP.boxes(ids(50, epoch=1), shapes, seed=2, size=16), together)


def test_every_other_sample_is_mirrored():
    flips = CROP.flips(ids(4000), seed=0)
    assert abs(flips.mean() - 0.5) < 0.04
    assert not RandomResizedCrop(flip=0).flips(ids(100), seed=0).any()


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"RandomResizedCrop: scale must rise within \(0, 1\], got \(0.5, 0.2\)"):
        RandomResizedCrop(scale=(0.5, 0.2))
    for ratio in ((0, 1), (1, math.inf)):
        message = re.escape(f"RandomResizedCrop: ratio must rise above 0 and be finite, got {ratio}")
        with pytest.raises(ValueError, match=message):
            RandomResizedCrop(ratio=ratio)
    message = "RandomResizedCrop: interpolation must be bicubic or bilinear, got 'nearest'"
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(interpolation="nearest")
    message = "RandomResizedCrop: crop_filter must be around or inside, got 'outside'"
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(crop_filter="outside")
