"""Crops that are no squares: boxes as torchvision draws them, stretched; the center as timm cuts it out."""

import numpy as np
import pytest
import torch
from checked import checked_images
from interop import import_or_skip
from PIL import ExifTags, Image

from bimkern.data import pil
from bimkern.data.augment import CenterCrop, RandomResizedCrop, reductions
from bimkern.data.batches import MicroBatches
from bimkern.data.decoding import decode
from bimkern.data.loader import choose_loader
from bimkern.data.step_layout import StepLayout
from bimkern.data.training_augment import TrainingAugment
from bimkern.evaluate.labeled import central_crop
from bimkern.exporters.trained import Preprocessing
from bimkern.image_size import ImageSize

SIZES = [(500, 375), (375, 500), (281, 217), (97, 60), (64, 64)]


def smooth(size, seed=0):
    levels = np.random.default_rng(seed).integers(64, 192, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def plan(images, size, augment=None, batch=8, **options):
    layout = StepLayout.uniform(image_size=size, batch_size=batch, micro_batch=batch)
    return MicroBatches(images=images, augment=augment or RandomResizedCrop(), seed=0, layout=layout, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate(SIZES):
        smooth(size, i).save(folder / f"{i}.png")
    return checked_images(folder)


def test_the_boxes_are_those_of_square_crops_and_stretched(photos):
    square, oblong = plan(photos, 64)[0], plan(photos, "48x96")[0]
    assert np.array_equal(square.boxes, oblong.boxes)
    assert np.array_equal(square.flips, oblong.flips)
    assert oblong.shape == (8, 3, 48, 96)
    batch = pil.decode(plan(photos, "48x96"), 0)
    for i, sample in enumerate(batch.sample_ids.tolist()):
        left, top, width, height = oblong.boxes[i]
        with Image.open(photos.path(sample)) as image:
            box = (left, top, left + width, top + height)
            expected = np.asarray(image.resize((96, 48), Image.Resampling.BICUBIC, box=box))
        expected = expected[:, ::-1] if oblong.flips[i] else expected
        assert np.abs(batch.images[i].numpy().transpose(1, 2, 0).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("augment", [RandomResizedCrop(), CenterCrop()], ids=["random", "center"])
def test_an_image_that_is_stored_on_its_side_has_the_crop_of_the_upright_one(tmp_path, orientation, augment):
    upright = smooth((150, 90))
    transpositions = (
        None,
        *(
            Image.Transpose[n]
            for n in (
                "FLIP_LEFT_RIGHT",
                "ROTATE_180",
                "FLIP_TOP_BOTTOM",
                "TRANSPOSE",
                "ROTATE_90",
                "TRANSVERSE",
                "ROTATE_270",
            )
        ),
    )  # what undoes each of the eight
    way = transpositions[orientation - 1]
    stored = upright if way is None else upright.transpose(way)
    for name, image, value in (("upright", upright, 1), ("stored", stored, orientation)):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = value
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png", exif=exif)
    found = [pil.decode(plan(checked_images(tmp_path / n), "32x80", augment, 2), 0) for n in ("upright", "stored")]
    assert found[0].images.shape == (2, 3, 32, 80)
    assert (found[0].images.int() - found[1].images.int()).abs().max() <= 1


def test_images_on_their_side_are_not_for_dali(tmp_path):
    """Its batches have one shape, and these crops are turned behind it."""
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        smooth((60, 40)).save(tmp_path / f"{orientation}.jpg", exif=exif)
    images = checked_images(tmp_path)
    assert plan(images, 32)[0].pil_only.sum() == 0
    crops = plan(images, "32x64")[0]
    assert np.array_equal(crops.pil_only, crops.orientations == 6)
    assert (images.for_pil(ImageSize.square(32)).sum(), images.for_pil(ImageSize(32, 64)).sum()) == (0, 1)


@pytest.mark.parametrize("size", ["48x96", "96x48"])
def test_dali_makes_the_crops_that_pil_makes(tmp_path, size):
    pytest.importorskip("nvidia.dali")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        smooth((150, 90)).save(tmp_path / f"{orientation}.jpg", exif=exif, quality=95)
    data = plan(checked_images(tmp_path), size)
    (theirs,) = choose_loader("dali", torch.device("cpu"), 0)[0].batches(data, 0, 1)
    difference = (theirs.images.int() - pil.decode(data, 0).images.int()).abs().float()
    assert difference.mean(dim=(1, 2, 3)).max() < 2


@pytest.mark.parametrize("size", [ImageSize(48, 96), ImageSize(96, 48)], ids=str)
@pytest.mark.parametrize("name", ["pil", "dali"])
@pytest.mark.parametrize("ratio", [0.875, 1.0])
def test_the_center_crop_is_that_of_timm(photos, name, size, ratio):
    timm = import_or_skip("timm")
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    layout = StepLayout.one_epoch(image_size=size, batch_size=5, num_images=5)
    data = MicroBatches(images=photos, augment=CenterCrop(ratio=ratio), seed=0, layout=layout)
    (batch,) = choose_loader(name, torch.device("cpu"), 0)[0].batches(data, 0, 1)
    transform = timm.data.create_transform((3, *size), interpolation="bicubic", crop_pct=ratio)
    resize, crop, *_ = transform.transforms
    for ours, sample_id in zip(batch.images, batch.sample_ids.tolist(), strict=True):
        with Image.open(photos.path(sample_id)) as image:
            theirs = np.asarray(crop(resize(image))).transpose(2, 0, 1).astype(int)
        inside = np.s_[:, 1:-1, 1:-1]
        difference = np.abs(ours.numpy() - theirs)[inside]
        assert difference.max() <= 2
        assert difference.mean() < 0.3


@pytest.mark.parametrize("size", [ImageSize(48, 96), ImageSize(96, 48), ImageSize(64, 64)], ids=str)
def test_probes_see_what_timm_would_show_an_exported_backbone(photos, size):
    timm = import_or_skip("timm")
    prepared = Preprocessing(image_size=size, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    resize, crop, *_ = timm.data.create_transform((3, *size), interpolation="bicubic", crop_pct=0.875).transforms
    for i in range(len(SIZES)):
        with photos.path(i).open("rb") as file:
            ours = central_crop(decode(file), prepared)
        with Image.open(photos.path(i)) as image:
            theirs = np.asarray(crop(resize(image))).transpose(2, 0, 1)
        assert np.array_equal(ours, theirs)


def test_a_draft_keeps_its_oversampling_on_both_sides():
    boxes = np.array([[0, 0, 800, 400], [0, 0, 400, 800], [0, 0, 1600, 1600]])
    assert reductions(boxes, ImageSize(50, 100), 2.0).tolist() == [4, 2, 8]
    assert reductions(boxes, ImageSize(100, 50), 2.0).tolist() == [2, 4, 8]


def test_training_with_labels_changes_rectangles_too(photos):
    import_or_skip("timm")
    batch = pil.decode(plan(photos, "48x96", TrainingAugment()), 0)
    assert batch.images.shape == (8, 3, 48, 96)
