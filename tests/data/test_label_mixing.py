"""Mixup, CutMix and label smoothing: timm's, repeatable by step, for any batch size."""

import random

import numpy as np
import pytest
import torch
from interop import import_or_skip

from bimkern import optional
from bimkern.data.global_generators import lent_generators
from bimkern.data.label_mixing import LabelMixing
from bimkern.rng import Stream

timm = import_or_skip("timm")

CLASSES = 7
MIXUP, CUTMIX = LabelMixing(cutmix=0), LabelMixing(mixup=0)


def batch(count, device="cpu", dtype=torch.float32):
    images = torch.randn(count, 3, 12, 10).to(device, dtype)
    return images, torch.randint(CLASSES, (count,), device=device)


def mixed(mixing, images, labels, step=0, seed=1):
    return mixing.mix(images.clone(), labels, CLASSES, seed=seed, step=step)


@pytest.mark.parametrize("mixing", [LabelMixing(), MIXUP, CUTMIX, LabelMixing(prob=0), LabelMixing(prob=0.5)])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_targets_sum_to_one(device, mixing, count):
    for step in range(8):
        images, targets = mixed(mixing, *batch(count, device), step)
        assert (images.shape, targets.shape, targets.dtype) == ((count, 3, 12, 10), (count, CLASSES), torch.float32)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(count, device=device), rtol=0, atol=1e-6)
        assert (targets >= 0).all()


@pytest.mark.parametrize("mixing", [LabelMixing(), MIXUP, CUTMIX])
def test_equals_timm_under_the_same_seed(mixing):
    theirs = timm.data.Mixup(mixing.mixup, mixing.cutmix, label_smoothing=0.1, num_classes=CLASSES)
    for step in range(8):
        images, labels = batch(6)
        with lent_generators(Stream.MIX, 1) as reseed:
            reseed(step)
            expected = theirs(images.clone(), labels)
        for ours, wanted in zip(mixed(mixing, images, labels, step), expected, strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixing", [{"mixup": 0, "cutmix": 0}, {"prob": 0}])
def test_without_mixing_targets_are_smoothed_and_images_stay(mixing, smoothing):
    images, labels = batch(5)
    same, targets = mixed(LabelMixing(**mixing, smoothing=smoothing), images, labels)
    assert torch.equal(same, images)
    expected = torch.full((5, CLASSES), smoothing / CLASSES)
    expected[torch.arange(5), labels] += 1 - smoothing
    torch.testing.assert_close(targets, expected)


def test_a_box_weighs_what_is_left_of_it_inside_the_image():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 12, 10).clone()
    clipped = 0
    for step in range(40):
        pixels, targets = mixed(LabelMixing(mixup=0, smoothing=0), images, torch.arange(4), step)
        moved = (pixels[0, 0] == 3).float()
        torch.testing.assert_close(targets[0, 3], moved.mean())
        torch.testing.assert_close(targets[0, 0], 1 - moved.mean())
        height, width = (int(moved.amax(dim).sum()) for dim in (1, 0))
        assert height * width == moved.sum()
        clipped += moved[[0, -1]].any() or moved[:, [0, -1]].any()
    assert clipped > 5


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_of_an_odd_number_the_middle_image_stays_and_the_others_are_mixed_as_ever(mixing, count):
    images, labels = batch(count)
    middle = count // 2
    others = [i for i in range(count) if i != middle]
    for step in range(4):
        pixels, targets = mixed(mixing, images, labels, step)
        torch.testing.assert_close(pixels[middle], images[middle])
        unmixed = LabelMixing(prob=0).mix(images[middle : middle + 1], labels[[middle]], CLASSES, seed=1, step=step)[1]
        torch.testing.assert_close(targets[middle], unmixed[0])
        if others:
            even_pixels, even_targets = mixed(mixing, images[others], labels[others], step)
            assert torch.equal(pixels[others], even_pixels)
            assert torch.equal(targets[others], even_targets)


def test_a_step_is_mixed_the_same_way_whatever_a_program_draws():
    images, labels = batch(6)
    first = mixed(LabelMixing(), images, labels, step=3)
    random.seed(8), np.random.seed(8), torch.manual_seed(8)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    again = mixed(LabelMixing(), images, labels, step=3)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert all(map(torch.equal, first, again))
    for other in ({"step": 4}, {"seed": 2}):
        assert not torch.equal(mixed(LabelMixing(), images, labels, **{"step": 3} | other)[1], first[1])


def test_mixup_and_cutmix_take_turns_as_often_as_asked():
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 16).clone()
    is_whole = [
        bool((mixed(LabelMixing(switch_prob=0.25), images, torch.arange(2), s)[0] % 1 == 0).all()) for s in range(400)
    ]
    assert 65 <= sum(is_whole) <= 145  # CutMix moves pixels and makes none


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_keep_their_dtype(device, dtype):
    images, targets = mixed(MIXUP, *batch(4, device, dtype))
    assert (images.dtype, targets.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixup": -1}, "mixup must be at least 0 and finite, got -1"),
        ({"cutmix": float("inf")}, "cutmix must be at least 0 and finite, got inf"),
        ({"prob": 2}, r"prob must be in \[0, 1\], got 2"),
        ({"switch_prob": -0.1}, r"switch_prob must be in \[0, 1\], got -0.1"),
        ({"smoothing": 1}, r"smoothing must be in \[0, 1\), got 1"),
    ],
)
def test_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=f"LabelMixing: {message}"):
        LabelMixing(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x.to(torch.uint8), y),
            r"images must be floats \[B, C, H, W\], got torch.uint8 \[4, 3, 12, 10\]",
        ),
        (lambda x, y: (x[0], y), r"images must be floats \[B, C, H, W\], got torch.float32 \[3, 12, 10\]"),
        (lambda x, y: (x, y[:2]), r"labels must be int64 \[B=4\], got torch.int64 \[2\]"),
        (lambda x, y: (x, y.float()), r"labels must be int64 \[B=4\], got torch.float32 \[4\]"),
        (lambda x, y: (x, y * 0 + 9), r"labels must be in \[0, num_classes=7\), got 9 to 9"),
    ],
)
def test_mix_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=rf"LabelMixing.mix: {message}"):
        mixed(LabelMixing(), *change(*batch(4)))


def test_without_timm_it_says_so(monkeypatch):
    def missing(name):
        raise optional.Unusable("not installed")

    monkeypatch.setattr(optional, "load", missing)
    with pytest.raises(optional.Unusable, match="mixup, CutMix and label smoothing need timm: not installed; pip inst"):
        mixed(LabelMixing(), *batch(2))
