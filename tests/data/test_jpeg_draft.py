"""Large JPEGs are decoded at reduced size where that hardly changes their crops."""

import io

import numpy as np
import pytest
import torch
from bad_files import encoded
from checked import away_from_edges, checked_images
from image_kinds import exif, kinds_of_color
from noisy import noisy_photograph
from PIL import Image

from bimkern.data import pil
from bimkern.data.augment import RandomResizedCrop, reductions
from bimkern.data.batches import BadImages, MicroBatches
from bimkern.data.dali import DaliLoader
from bimkern.data.decoding import decode, decode_file
from bimkern.data.demo import demo_images
from bimkern.data.formats import BadImage
from bimkern.data.listing import list_images
from bimkern.data.orientation import turned
from bimkern.data.step_layout import StepLayout
from bimkern.image_size import ImageSize

WHOLE = {"scale": (1, 1), "ratio": (1, 1), "flip": 0}


def plan(images, size, epochs=1, *, jpeg_draft=4.0, **augment):
    layout = StepLayout.uniform(image_size=size, batch_size=epochs * len(images), micro_batch=epochs * len(images))
    augment = RandomResizedCrop(**augment)
    return MicroBatches(images=images, augment=augment, seed=3, layout=layout, jpeg_draft=jpeg_draft)


def levels(data):
    return pil.decode(data, 0).images.int()


def difference(images, size, epochs=1, **options):
    """Return how far drafts are from full decoding, [B, C, H, W], and the reductions, [B]."""
    drafts, full = (plan(images, size, epochs, jpeg_draft=draft, **options) for draft in (4.0, 0.0))
    return (levels(drafts) - levels(full)).abs(), torch.from_numpy(drafts[0].reductions)


def demo_photographs(*indices):
    listing = list_images(demo_images())
    return [decode_file(listing.source.path(listing.files[i])).pixels for i in indices]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two photographs of an odd size, with the noise of a sensor, and both kinds of chroma."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, photograph in enumerate(demo_photographs(0, 1)):
        image = noisy_photograph(photograph, 1601, 1203, seed=i)
        for subsampling in ("4:2:0", "4:4:4"):
            image.save(folder / f"{i} {subsampling[2:]}.jpg", quality=90, subsampling=subsampling)
    return checked_images(folder)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_draft_is_within_three_levels_of_full_decoding_on_photographs_with_noise(photographs, interpolation):
    away, reduction = difference(photographs, 64, 8, interpolation=interpolation)
    assert set(reduction.tolist()) == {2, 4}
    assert away.max() <= 3
    assert (away > 2).float().mean() < 1e-3
    assert 0 < away.float().mean() < 0.3


@pytest.mark.parametrize("jpeg_draft", [0.0, 4.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_two_loaders_agree_on_them_with_and_without_drafts(photographs, interpolation, jpeg_draft):
    pytest.importorskip("nvidia.dali")
    data = plan(photographs, 64, 8, jpeg_draft=jpeg_draft, scale=(0.2, 0.7), interpolation=interpolation)
    (ours,) = DaliLoader(threads=1, device=torch.device("cpu")).batches(data, 0, 1)
    away = (ours.images.int() - levels(data)).abs()
    assert away.max() <= 16
    assert (away > 2).float().mean() < 2e-4
    inside = away[torch.from_numpy(away_from_edges(data))]
    assert len(inside) > 5
    assert inside.max() <= 3
    assert inside.float().mean() < (0.15 if jpeg_draft else 0.1)


def test_a_crop_that_is_too_small_for_a_draft_is_the_same(photographs):
    away, reduction = difference(photographs, 256, 4)
    assert (reduction == 1).any()
    assert away[reduction == 1].max() == 0


def test_where_the_filter_sees_the_box_alone_nothing_is_drafted(photographs):
    """A pixel of a draft may lie across the edge of a box: some values would be 10 levels away."""
    away, reduction = difference(photographs, 64, 8, crop_filter="inside")
    assert reduction.max() == 1
    assert away.max() == 0


def test_coarser_drafts_are_an_option(photographs):
    assert set(plan(photographs, 64, 8, jpeg_draft=1.0)[0].reductions.tolist()) == {8}


@pytest.mark.parametrize(
    ("side", "oversampling", "reduction"),
    [
        *((4095, 4, 4), (8 * 4 * 128, 4, 8), (4 * 4 * 128, 4, 4), (4 * 4 * 128 - 1, 4, 2), (1024, 4, 2), (1023, 4, 1)),
        *((1, 4, 1), (10**5, 4, 8), (10**5, 0, 1), (1023, 3, 2), (320, 1.25, 2), (319, 1.25, 1)),
    ],
)
def test_the_shorter_side_of_a_box_decides(side, oversampling, reduction):
    boxes = np.array([[7, 9, side, side + 100], [7, 9, side + 100, side], [0, 0, 1, 1]])
    assert reductions(boxes, ImageSize.square(128), oversampling).tolist() == [reduction, reduction, 1]


def ramp(width, height):
    """Red rises to the right, green downwards, blue to both."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("side", [33, 35, 39])
def test_boxes_are_exact_in_images_that_a_reduction_does_not_divide(tmp_path, side):
    """To scale a box by the rounded sizes would cost 6 levels and more, on average."""
    for orientation in range(1, 9):
        stored = ramp(side, side + 2)
        stored.save(tmp_path / f"{orientation}.jpg", quality=100, subsampling=0, exif=exif(orientation))
    images = checked_images(tmp_path)
    away, reduction = difference(images, 2, 4, scale=(0.9, 1), ratio=(0.95, 1.05))
    assert reduction.max() == 4
    assert away.float().mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_of_a_turned_image_is_that_of_the_upright_one(tmp_path, orientation):
    """Up to the order of the two passes of a resize, between which PIL rounds."""
    ramp(40, 40).save(tmp_path / "turned.jpg", quality=100, exif=exif(orientation))
    upright = turned(decode_file(tmp_path / "turned.jpg").pixels, orientation)
    crop = levels(plan(checked_images(tmp_path), 4, **WHOLE))[0]
    expected = torch.from_numpy(np.asarray(upright.resize((4, 4), Image.Resampling.BICUBIC)).copy()).permute(2, 0, 1)
    assert (crop - expected.int()).abs().max() <= 1


def test_every_kind_of_jpeg_is_drafted_but_cmyk(tmp_path):
    (photograph,) = demo_photographs(3)
    picture = noisy_photograph(photograph, 401, 299, seed=0)
    kinds = {name: content for name, content in kinds_of_color(picture).items() if name.endswith(".jpg")}
    kinds["preview.jpg"] = encoded("MPO", picture, save_all=True, append_images=[picture.resize((40, 30))])
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
    images = checked_images(tmp_path)
    away, reduction = difference(images, 16, scale=(0.9, 1))
    assert reduction.min() >= 4
    names = [images.files[i] for i in plan(images, 16)[0].sample_ids]
    worst = dict(zip(names, away.amax(dim=(1, 2, 3)).tolist(), strict=True))
    assert set(worst) == set(kinds)
    assert {name for name, level in worst.items() if not level} == {"cmyk.jpg", "cmyk without marker.jpg", "ycck.jpg"}
    assert max(worst.values()) <= 3, worst


@pytest.mark.parametrize(
    ("suffix", "size"), [("jpg", (11, 8)), ("png", (41, 30)), ("webp", (41, 30)), ("gif", (41, 30))]
)
def test_other_formats_are_decoded_in_full(tmp_path, suffix, size):
    ramp(41, 30).save(tmp_path / f"x.{suffix}")
    decoded = decode_file(tmp_path / f"x.{suffix}", 4)
    assert decoded.pixels.size == size
    assert decoded.size == (41, 30)
    assert decoded.reduction == (4 if suffix == "jpg" else 1)


@pytest.mark.parametrize("now", [(3, 3), (200, 160)])
def test_a_large_image_that_has_become_another_is_bad(tmp_path, now):
    ramp(160, 160).save(tmp_path / "x.jpg")
    data = plan(checked_images(tmp_path), 4, **WHOLE)
    ramp(*now).save(tmp_path / "x.jpg")
    with pytest.raises(BadImages) as raised:
        pil.decode(data, 0)
    assert raised.value.faults == {0: "its size has changed since it was checked"}


def test_a_draft_of_a_truncated_image_is_refused():
    content = encoded("JPEG", ramp(160, 160))
    with pytest.raises(BadImage, match="truncated"):
        decode(io.BytesIO(content[: len(content) // 2]), 8)
