"""Augmentation for training with labels: pixels that depend on (seed, epoch, image) alone, and equal timm's."""

import contextlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from bad_files import picture
from checked import checked_images
from interop import import_or_skip
from PIL import Image
from spectral import write_spectral

from bimkern import optional
from bimkern.data import pil
from bimkern.data.augment import CenterCrop, RandomResizedCrop, draw_ids
from bimkern.data.batches import MicroBatches
from bimkern.data.dali import DaliLoader
from bimkern.data.global_generators import lent_generators
from bimkern.data.loader import LoaderError, PilLoader, choose_loader
from bimkern.data.step_layout import StepLayout
from bimkern.data.training_augment import TrainingAugment
from bimkern.mim.model import IMAGENET_MEAN
from bimkern.rng import Stream

timm = import_or_skip("timm")

AUGMENT = TrainingAugment()
CPU = torch.device("cpu")


def plan(images, augment=AUGMENT, batch_size=9, micro_batch=9, seed=3):
    layout = StepLayout.uniform(image_size=24, batch_size=batch_size, micro_batch=micro_batch)
    return MicroBatches(images=images, augment=augment, seed=seed, layout=layout)


def by_draw(loader, data, first, last):
    """The pixels of every draw, by its id."""
    found = {}
    for batch in loader.batches(data, first, last):
        found |= dict(zip(batch.draw_ids.tolist(), batch.images.numpy().copy(), strict=True))
    return found


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def images(folder):
    return checked_images(folder)


@pytest.mark.parametrize("augment", [AUGMENT, TrainingAugment(rand_augment=None, color_jitter=0.4)])
def test_pixels_depend_on_the_draw_and_not_on_workers_batches_or_resume(images, augment):
    whole = by_draw(PilLoader(workers=0), plan(images, augment), 0, 4)
    assert len(whole) == 36
    random.seed(1), torch.manual_seed(1)  # what a program draws is of no effect
    for workers in (1, 3):
        assert same(by_draw(PilLoader(workers=workers), plan(images, augment, 6, 4), 0, 12), whole)
    resumed = by_draw(PilLoader(workers=2), plan(images, augment), 2, 4)
    assert same(resumed, {key: whole[key] for key in resumed})
    assert len(resumed) == 18


def test_another_epoch_or_seed_augments_otherwise(images):
    augment = TrainingAugment(rand_augment="rand-m9-mstd0.5-inc1-p1.0", scale=(1, 1), ratio=(1.333, 1.3333), flip=0)
    first = by_draw(PilLoader(workers=0), plan(images, augment), 0, 2)
    other = by_draw(PilLoader(workers=0), plan(images, augment, seed=4), 0, 2)
    assert not any(np.array_equal(first[key], other[key]) for key in first)
    ids = np.arange(9)
    epochs = [draw_ids(np.full(9, epoch), ids).tolist() for epoch in (0, 1)]
    assert not any(np.array_equal(first[a], first[b]) for a, b in zip(*epochs, strict=True))


@pytest.mark.parametrize("policy", [None, "rand-m9-p0-inc1", "rand-m9-n0"])
def test_a_policy_that_does_nothing_leaves_crop_and_flip(images, policy):
    crop = RandomResizedCrop(scale=(0.08, 1.0))
    plain = by_draw(PilLoader(workers=0), plan(images, crop), 0, 2)
    assert same(by_draw(PilLoader(workers=0), plan(images, TrainingAugment(rand_augment=policy)), 0, 2), plain)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_crop_goes_through_the_transform_that_timm_makes(images, interpolation):
    """From the file on: torchvision's resized crop of the same box, the flip, then timm under the same seed."""
    augment = TrainingAugment(rand_augment="rand-m9-mstd0.5-mmax9-inc1-p1.0", interpolation=interpolation)
    augment = replace(augment, crop_filter="inside")
    data = plan(images, augment)
    resized_crop = pytest.importorskip("torchvision.transforms.functional").resized_crop
    mode = timm.data.transforms.str_to_interp_mode(interpolation)
    parts = timm.data.create_transform(
        24, is_training=True, auto_augment=augment.rand_augment, interpolation=interpolation, separate=True
    )
    crops, ours = data[0], pil.decode(data, 0).images.numpy()
    changed = 0
    for i, sample_id in enumerate(crops.sample_ids):
        left, top, width, height = crops.boxes[i].tolist()
        with Image.open(images.path(int(sample_id))) as image:
            crop = resized_crop(image.convert("RGB"), top, left, height, width, [24, 24], mode)
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crops.flips[i] else crop
        with lent_generators(Stream.AUGMENT, data.seed) as reseed:
            reseed(int(crops.draw_ids[i]))
            theirs = np.asarray(parts[1](crop)).transpose(2, 0, 1)
        assert np.array_equal(ours[i], theirs)
        changed += not np.array_equal(theirs, np.asarray(crop).transpose(2, 0, 1))
    assert changed > 6


def test_the_largest_magnitude_posterizes_to_black():
    """Pillow 13 refuses 0 bits, which earlier ones take as black."""
    images = np.full((300, 3, 8, 8), 100, dtype=np.uint8)
    TrainingAugment(rand_augment="rand-m10-n1-p1-inc1").pixel_transform(3)(images, np.arange(300), 5)
    black = (images == 0).all((1, 2, 3)).sum()
    assert 8 <= black <= 60  # one operation in 15, or one of two more that may come to it


def test_levels_are_distributed_as_timms_are():
    """The same image a thousand times, by our seeds and by the generators as a program has them."""
    original = np.asarray(picture(24, 24).resize((24, 24))).transpose(2, 0, 1)
    ours = np.repeat(original[None], 1000, axis=0)
    augment = TrainingAugment(rand_augment="rand-m9-mstd0.5-mmax9-inc1")
    augment.pixel_transform(3)(ours, np.arange(1000), 5)
    _, transform, _ = timm.data.create_transform(
        24, is_training=True, auto_augment=augment.rand_augment, interpolation="bicubic", separate=True
    )
    image = Image.fromarray(original.transpose(1, 2, 0))
    with lent_generators(Stream.AUGMENT, int(torch.initial_seed())) as reseed:
        reseed(0)
        theirs = np.stack([np.asarray(transform(image)).transpose(2, 0, 1) for _ in range(1000)])
    for statistic in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: (x == original).all((1, 2, 3)),
    ):
        a, b = statistic(ours.astype(float)), statistic(theirs.astype(float))
        assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / 1000)


def test_the_random_numbers_of_a_program_stay_as_they_are(images):
    def drawn():
        return random.random(), random.gauss(0, 1), np.random.standard_normal(), torch.rand(1).item()  # noqa: NPY002

    def state():
        found = np.random.get_state()  # noqa: NPY002
        return random.getstate(), found[0], found[1].tolist(), found[2:], torch.get_rng_state().tolist()

    drawn()  # both gaussians keep their second number
    before = state()
    by_draw(PilLoader(workers=0), plan(images), 0, 1)
    AUGMENT.erase(torch.zeros(9, 3, 24, 24), torch.arange(9), seed=0)
    assert state() == before
    with contextlib.suppress(KeyError), lent_generators(Stream.MIX, 0) as reseed:
        reseed(1)
        drawn()
        raise KeyError
    assert state() == before


def test_another_generator_of_numpy_stays_in_its_place():
    set_generator, get_generator = np.random.set_bit_generator, np.random.get_bit_generator
    before, own = get_generator(), np.random.PCG64(5)
    set_generator(own)
    try:
        state = own.state
        with lent_generators(Stream.MIX, 0) as reseed:
            reseed(1)
            np.random.rand()  # noqa: NPY002
        assert get_generator() is own
        assert own.state == state
    finally:
        set_generator(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_quarter_of_the_images_loses_a_rectangle_to_noise(device, dtype, channels):
    ids = torch.arange(400)
    images = torch.full((400, channels, 24, 20), 9.0, dtype=dtype, device=device)
    assert AUGMENT.erase(images, ids, seed=2) is images
    erased = (images != 9).all(dim=1)  # [B, H, W]
    share = erased.flatten(1).float().mean(dim=1)
    hit = share > 0
    assert 70 <= hit.sum() <= 130
    assert share[hit].min() > 0.01
    assert share[hit].max() < 0.37
    for one in erased[hit]:
        rows, columns = one.any(dim=1), one.any(dim=0)
        assert one.sum() == rows.sum() * columns.sum()  # a rectangle
    noise = images.movedim(1, -1)[erased].float()
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


def test_erasing_follows_the_draw_and_not_the_batch(device):
    ids = draw_ids(np.repeat([0, 1], 40), np.tile(np.arange(40), 2))
    images = AUGMENT.erase(torch.zeros(80, 3, 24, 24, device=device), torch.from_numpy(ids), seed=2)
    order = torch.randperm(80)[:37]
    some = AUGMENT.erase(torch.zeros(37, 3, 24, 24, device=device), torch.from_numpy(ids)[order], seed=2)
    assert torch.equal(some, images[order.to(device)])
    assert not torch.equal(images[:40], images[40:])
    assert torch.equal(TrainingAugment(erase_prob=0).erase(images.clone(), torch.from_numpy(ids), seed=2), images)


def test_gray_and_more_channels_are_cropped_and_refused_randaugment(folder, tmp_path_factory):
    plain = TrainingAugment(rand_augment=None)
    spectral = write_spectral(tmp_path_factory.mktemp("arrays") / "four", 4)
    for channels, images in ((1, checked_images(folder, 1)), (4, checked_images(spectral, 4))):
        batch = pil.decode(plan(images, plain), 0)
        assert batch.images.shape == (9, channels, 24, 24)
        message = rf"TrainingAugment: RandAugment needs images of 3 channels, got {channels}; set rand_augment to None"
        with pytest.raises(ValueError, match=message):
            plan(images)
        with pytest.raises(ValueError, match="TrainingAugment: color jitter needs images of 3 channels"):
            plan(images, replace(plain, color_jitter=0.4))


def test_what_needs_pil_is_not_given_to_dali(images):
    _, line = choose_loader("auto", torch.device("cuda"), 2, augment=AUGMENT)
    assert line == "PIL in 2 processes, as RandAugment takes images of PIL"
    with pytest.raises(LoaderError, match="--loader dali: RandAugment takes images of PIL; take --loader pil"):
        choose_loader("dali", CPU, 2, augment=AUGMENT)
    with pytest.raises(ValueError, match="augment must crop and flip alone, got RandAugment; take PilLoader"):
        next(DaliLoader(threads=1, device=CPU).batches(plan(images), 0, 1))


def test_without_randaugment_dali_loads_it_too(images):
    pytest.importorskip("nvidia.dali")
    data = plan(images, TrainingAugment(rand_augment=None))
    loader, line = choose_loader("dali", CPU, 2, augment=data.augment)
    assert line.startswith("DALI, decodes")
    (ours,) = loader.batches(data, 0, 1)
    theirs = pil.decode(data, 0)
    assert torch.equal(ours.draw_ids, theirs.draw_ids)
    assert (ours.images.int() - theirs.images.int()).abs().float().mean() < 2


def test_without_timm_the_reason_comes_before_any_image(images, monkeypatch):
    def missing(name):
        raise optional.Unusable("not installed")

    monkeypatch.setattr(optional, "load", missing)
    with pytest.raises(
        optional.Unusable, match=r"RandAugment needs timm: not installed; pip install 'bimkern\[timm\]'"
    ):
        plan(images)
    with pytest.raises(optional.Unusable, match="random erasing needs timm: not installed"):
        AUGMENT.erase(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), seed=0)
    plan(images, CenterCrop())


def test_the_mean_is_that_of_the_method():
    assert AUGMENT.mean == IMAGENET_MEAN


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rand_augment": "rand-foo"}, "rand_augment must be a policy of timm such as rand-m9-.*, got 'rand-foo'"),
        ({"rand_augment": "original"}, "rand_augment must be a policy of timm such as rand-m9-.*, got 'original'"),
        (
            {"rand_augment": "rand-m9-tweigths"},
            "rand_augment must be a policy of timm such as .*, got 'rand-m9-tweigths'",
        ),
        ({"rand_augment": "rand-m9-p1.5"}, "rand_augment must be a policy of timm such as .*, got 'rand-m9-p1.5'"),
        ({"mean": (124.0, 116.0, 104.0)}, r"mean must be in \[0, 1\], got \(124.0, 116.0, 104.0\)"),
        ({"mean": (float("nan"), 0.5, 0.5)}, r"mean must be in \[0, 1\], got \(nan, 0.5, 0.5\)"),
        ({"erase_prob": 1.5}, r"erase_prob must be in \[0, 1\], got 1.5"),
        ({"color_jitter": -1.0}, "color_jitter must be at least 0 and finite, got -1.0"),
        ({"color_jitter": 0.4}, "color_jitter must be 0 beside rand_augment, got 0.4; timm would ignore it; set rand_"),
        ({"scale": (0.5, 0.2)}, r"scale must rise within \(0, 1\], got \(0.5, 0.2\)"),
    ],
)
def test_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=f"TrainingAugment: {message}"):
        TrainingAugment(**fields)


def test_what_timm_documents_is_a_policy():
    for policy in (
        "rand-m9-n3-mstd0.5",
        "rand-mstd1-tweights",
        "rand-m7-p0.25-mmax12-inc1-t3a",
        "rand-t3aw-p1.0",
        "rand",
    ):
        TrainingAugment(rand_augment=policy)


def test_erase_says_what_is_wrong():
    ids = torch.zeros(2, dtype=torch.int64)
    message = r"images must be normalized floats \[B, C, H, W\], got torch.uint8 \[2, 3, 8, 8\]; normalize them first"
    with pytest.raises(ValueError, match=f"TrainingAugment.erase: {message}"):
        AUGMENT.erase(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ids, seed=0)
    with pytest.raises(ValueError, match=r"TrainingAugment.erase: draw_ids must be \[B=3\], got \[2\]"):
        AUGMENT.erase(torch.zeros(3, 3, 8, 8), ids, seed=0)
