"""Both loaders over one folder of every orientation, marker and kind of color; what they do to contrasts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checked import away_from_edges, checked_images, upright
from image_kinds import exif, kinds_of_color, turned_files
from PIL import Image

from bimkern.data import pil
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.dali import DaliLoader
from bimkern.data.decoding import Decoding, decode_file
from bimkern.data.demo import demo_images
from bimkern.data.listing import list_images
from bimkern.data.orientation import turned
from bimkern.data.step_layout import StepLayout

EPOCHS = 12
ONE_IMAGE = StepLayout.uniform(image_size=16, batch_size=1, micro_batch=1)


def picture(width=90, height=70):
    """Coarse noise, smoothed, and muted: a cubic filter overshoots by less."""
    levels = torch.randint(64, 192, (height // 8, width // 8, 3), dtype=torch.uint8)
    return Image.fromarray(levels.numpy()).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture
def folder(tmp_path):
    for name, (content, _) in turned_files(picture()).items():
        (tmp_path / name).write_bytes(content)
    for name, content in kinds_of_color(picture()).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def plan(images, size, **augment):
    layout = StepLayout.uniform(image_size=size, batch_size=EPOCHS * len(images), micro_batch=EPOCHS * len(images))
    return MicroBatches(images=images, augment=RandomResizedCrop(**augment), seed=torch.initial_seed(), layout=layout)


def both(data, device="cpu", **options):
    pytest.importorskip("nvidia.dali")
    (ours,) = DaliLoader(threads=2, device=torch.device(device), **options).batches(data, 0, 1)
    theirs = pil.decode(data, 0)
    assert torch.equal(ours.draw_ids, theirs.draw_ids)
    return ours.images.cpu().int(), theirs.images.int()


def test_every_orientation_is_read_wherever_it_is_kept(tmp_path):
    original = picture()
    files = turned_files(original)
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    images = checked_images(tmp_path)
    assert set(images.files) == files.keys()
    for i, name in enumerate(images.files):
        image = turned(decode_file(tmp_path / name).pixels, int(images.orientations[i]))
        assert image.size == tuple(images.sizes[i])
        assert np.array_equal(image, upright(tmp_path / name)), name
        if not name.endswith(".jpg"):
            assert np.array_equal(image, turned(original, files[name][1])), name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_loaders_agree_on_every_orientation_marker_and_kind_of_color(folder, interpolation, regions, channels):
    data = plan(checked_images(folder, channels), 16, scale=(0.1, 0.3), interpolation=interpolation)
    ours, theirs = both(data, regions=regions)
    difference = (ours - theirs).abs().amax(dim=(1, 2, 3))
    crops, inside = data[0], away_from_edges(data)
    worst = dict.fromkeys(data.images.files, 0)
    for i in np.flatnonzero(inside):
        name = data.images.files[crops.sample_ids[i]]
        worst[name] = max(worst[name], int(difference[i]))
    if interpolation == "bicubic":
        del worst["1.png"]  # black and white, where the filter overshoots
    assert max(worst.values()) <= 2, worst
    assert len(set(crops.sample_ids[inside].tolist())) > 0.9 * len(data.images)
    assert difference[torch.from_numpy(crops.pil_only)].max() == 0


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_loaders_agree_where_the_filter_sees_the_box_alone(folder, interpolation):
    """But for outermost pixels: beyond the edge of the box DALI repeats those of the box, and PIL leaves them out."""
    (folder / "1.png").unlink()  # black and white, where the filter overshoots
    data = plan(checked_images(folder), 16, interpolation=interpolation, crop_filter="inside")
    ours, theirs = both(data)
    difference = (ours - theirs).abs()
    assert difference[:, :, 1:-1, 1:-1].max() <= 2
    assert difference.max() <= 10
    assert difference.float().mean() < 0.25


@pytest.mark.parametrize(("crop_filter", "sees"), [("inside", False), ("around", True)])
def test_what_lies_around_a_box_counts_or_not(tmp_path, crop_filter, sees):
    original = picture()
    original.save(tmp_path / "0.png")
    options = {"scale": (0.2, 0.4), "ratio": (1, 1), "crop_filter": crop_filter}
    data = replace(plan(checked_images(tmp_path), 16, **options), layout=ONE_IMAGE)
    before = both(data)
    ((left, top, width, height),) = data[0].boxes
    pixels = 255 - np.asarray(original)
    inside = np.s_[top : top + height, left : left + width]
    pixels[inside] = np.asarray(original)[inside]
    Image.fromarray(pixels).save(tmp_path / "0.png")
    assert [not torch.equal(*crops) for crops in zip(before, both(data), strict=True)] == [sees, sees]


@pytest.mark.parametrize("regions", [True, False])
def test_a_gpu_decodes_every_kind_alike(folder, regions, gpu):
    ours, theirs = both(plan(checked_images(folder), 16), gpu, regions=regions)
    assert (ours - theirs).abs().float().mean(dim=(1, 2, 3)).max() < 2  # other JPEG decoders


def test_a_file_without_adobes_marker_has_the_colors_of_one_with_it(folder):
    marked, unmarked = (decode_file(folder / f"cmyk{marker}.jpg").pixels for marker in ("", " without marker"))
    assert np.array_equal(marked, unmarked)


def test_a_batch_of_pils_alone_is_loaded(folder):
    for path in folder.iterdir():
        if path.suffix != ".gif":
            path.unlink()
    ours, theirs = both(plan(checked_images(folder), 16))
    assert torch.equal(ours, theirs)


def test_metadata_that_make_no_sense_turn_nothing(tmp_path):
    picture().save(tmp_path / "garbage.jpg", exif=b"Exif\0\0" + bytes(range(99)))
    picture().save(tmp_path / "nine.jpg", exif=exif(9))
    assert checked_images(tmp_path).orientations.tolist() == [1, 1]
    ours, theirs = both(plan(checked_images(tmp_path), 16, scale=(1, 1), ratio=(9 / 7, 9 / 7)))
    assert (ours - theirs).abs().float().mean() < 0.5


@pytest.mark.parametrize(("size", "channels"), [(64, 3), (160, 3), (64, 1)])
def test_on_photographs_the_filter_overshoots_rarely_and_by_little(size, channels):
    """Pillow's bicubic clips to 8 bits between its two passes, which shows at edges of high contrast."""
    listing = list_images(demo_images(), Decoding(channels=channels))
    data = plan(readable(listing, check(listing, workers=0)), size)
    ours, theirs = both(data)
    difference = (ours - theirs).abs()[torch.from_numpy(away_from_edges(data))]
    assert len(difference) > 50
    assert difference.float().mean() < 0.2
    assert (difference > 2).float().mean() < 2e-4
    assert difference.max() <= 16
