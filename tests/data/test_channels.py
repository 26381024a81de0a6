"""Images of any number of channels: gray and RGB of any file, other numbers of files that hold as many."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from bad_files import encoded, picture
from checked import checked_images, listed
from image_kinds import kinds_of_color, turned_files
from numpy.lib import format as npy
from PIL import Image
from spectral import smooth_levels, write_spectral

from bimkern.data import pil
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check
from bimkern.data.decoding import Decoding, decode
from bimkern.data.formats import BadImage, allow_pixels
from bimkern.data.loader import LoaderError, PilLoader, choose_loader
from bimkern.data.step_layout import StepLayout
from bimkern.train.run_folder.dataset_manifest import freeze_dataset


def plan(images, batch_size=24, **augment):
    layout = StepLayout.uniform(image_size=16, batch_size=batch_size, micro_batch=batch_size)
    return MicroBatches(images=images, augment=RandomResizedCrop(**augment), seed=3, layout=layout)


def crops(folder, channels):
    return pil.decode(plan(checked_images(folder, channels)), 0).images


def array(levels):
    stream = BytesIO()
    np.save(stream, levels)
    return stream.getvalue()


def claims(shape, dtype="|u1", rows=b""):
    """Return an array file that claims a shape, whatever it holds."""
    stream = BytesIO()
    npy.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + rows


def test_every_kind_of_image_is_read_in_gray_as_its_colors_are(tmp_path):
    muted = Image.fromarray(smooth_levels(64, 48, 3) // 2 + 64)
    files = kinds_of_color(muted) | {name: content for name, (content, _) in turned_files(muted).items()}
    for name, content in files.items():
        in_color = decode(BytesIO(content)).pixels
        gray = decode(BytesIO(content), how=Decoding(channels=1)).pixels
        assert (in_color.mode, gray.mode) == ("RGB", "L")
        away = np.abs(np.asarray(in_color.convert("L"), dtype=int) - np.asarray(gray, dtype=int))
        assert away.max() <= (3 if name.endswith(".jpg") else 1), name  # of a JPEG it is what is stored as luma


def test_gray_jpegs_are_drafted(tmp_path):
    picture(400, 300).save(tmp_path / "x.jpg")
    decoded = decode(BytesIO((tmp_path / "x.jpg").read_bytes()), 4, Decoding(channels=1))
    assert (decoded.pixels.mode, decoded.pixels.size, decoded.size) == ("L", (100, 75), (400, 300))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_channel_of_an_array_is_cropped_as_a_gray_image_of_its_own(tmp_path, interpolation, order):
    """Bit for bit, with the same boxes and flips."""
    for channel in range(5):
        (tmp_path / f"{channel}").mkdir()
    (tmp_path / "all").mkdir()
    for i in range(6):
        levels = smooth_levels(60 + i, 48, seed=i)
        np.save(tmp_path / "all" / f"{i}.npy", np.asarray(levels, order=order))
        for channel in range(5):
            Image.fromarray(levels[:, :, channel]).save(tmp_path / f"{channel}" / f"{i}.png")
    images = checked_images(tmp_path / "all", 5)
    assert images.pil_only.all()
    assert images.sizes.tolist() == [[60 + i, 48] for i in range(6)]
    data = plan(images, interpolation=interpolation)
    assert set(data[0].flips.tolist()) == {False, True}
    together = pil.decode(data, 0).images
    assert together.shape == (24, 5, 16, 16)
    for channel in range(5):
        alone = plan(checked_images(tmp_path / f"{channel}", 1), interpolation=interpolation)
        assert torch.equal(pil.decode(alone, 0).images, together[:, channel : channel + 1])


def test_rgba_is_four_channels_none_of_which_weighs_the_others(tmp_path):
    """PIL resizes the colors of RGBA by their alpha."""
    for name in ("images", "arrays"):
        (tmp_path / name).mkdir()
    levels = smooth_levels(channels=4)
    levels[:20, :, 3] = 0
    Image.fromarray(levels).save(tmp_path / "images" / "x.png")
    np.save(tmp_path / "arrays" / "x.npy", levels)
    assert torch.equal(crops(tmp_path / "images", 4), crops(tmp_path / "arrays", 4))


def test_processes_load_the_same(tmp_path):
    images = checked_images(write_spectral(tmp_path / "five", 5), 5)
    data = plan(images, batch_size=8)
    expected = [pil.decode(data, i).images for i in range(4)]
    for ours, theirs in zip(PilLoader(workers=1).batches(data, 0, 4), expected, strict=True):
        assert torch.equal(ours.images, theirs)


HOLDS = "a TIFF or a .npy file [H, W, {}] holds as many"
BAD = {
    "rgb for 5": (encoded("JPEG"), 5, f"has 3 channels (RGB), the encoder takes 5; {HOLDS.format(5)}"),
    "gray for 5": (encoded("PNG", picture().convert("L")), 5, "has 1 channel (L), the encoder takes 5; "),
    "rgb for 4": (encoded("JPEG"), 4, f"has 3 channels (RGB), the encoder takes 4 (RGBA); {HOLDS.format(4)}"),
    "cmyk for 4": (encoded("JPEG", picture().convert("CMYK")), 4, "has 4 channels (CMYK), the encoder takes 4 (RGBA)"),
    "rgba for 5": (encoded("PNG", picture().convert("RGBA")), 5, "has 4 channels (RGBA), the encoder takes 5; "),
    "array of 3 for 5": (array(np.zeros((9, 8, 3), np.uint8)), 5, "has 3 channels, the encoder takes 5"),
    "array of 1 for 2": (array(np.zeros((9, 8, 1), np.uint8)), 2, "has 1 channel, the encoder takes 2"),
    "array of 4 for 3": (array(np.zeros((9, 8, 4), np.uint8)), 3, "has 4 channels, the encoder takes 3"),
    "float": (array(np.zeros((9, 8, 5))), 5, "64 bits per channel (float64); state their range"),
    "16 bits": (array(np.zeros((9, 8, 5), np.uint16)), 5, "16 bits per channel (uint16); state their range"),
    "flat": (array(np.zeros((9, 8), np.uint8)), 5, "has 1 channel, the encoder takes 5"),
    "objects": (array(np.array([[[{}] * 5]])), 5, "object [1, 1, 5]; .npy images are numbers [H, W, C]"),
    "no rows": (array(np.zeros((0, 8, 5), np.uint8)), 5, "no pixels in [0, 8, 5]"),
    "negative": (claims((-9, 8, 5), rows=bytes(360)), 5, "no pixels in [-9, 8, 5]"),
    "truncated": (array(np.zeros((9, 8, 5), np.uint8))[:-1], 5, "truncated"),
    "bomb": (claims((10**6, 10**6, 5)), 5, "1000000 x 1000000 pixels, more than --max-pixels"),
    "header": (npy.MAGIC_PREFIX + b"\1\0\x10\0import os; os._ex", 5, "not a .npy file that can be read ("),
    "start": (npy.MAGIC_PREFIX, 5, "not a .npy file that can be read ("),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_of_other_channels_or_a_broken_array_is_bad(kind):
    content, channels, reason = BAD[kind]
    with pytest.raises(BadImage) as raised:
        decode(BytesIO(content), how=Decoding(channels=channels))
    assert str(raised.value).startswith(reason)
    assert "\n" not in str(raised.value)


def test_no_memory_is_taken_for_what_an_array_only_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back at the end
    allow_pixels(2**40)
    (tmp_path / "x.npy").write_bytes(claims((2**20, 2**20, 5), rows=bytes(99)))
    assert check(listed(tmp_path, 5), workers=0)["x.npy"].fault == "truncated"


def test_arrays_beside_images_are_data_only_where_channels_need_them(tmp_path):
    """They may be features of the images."""
    picture().save(tmp_path / "photo.jpg")
    np.save(tmp_path / "photo.npy", smooth_levels())
    for channels in (1, 3):
        listing = listed(tmp_path, channels)
        assert listing.files == ("photo.jpg",)
        assert listing.others == {"photo.npy": "not opened, as its suffix is not that of an image"}
    assert listed(tmp_path, 5).files == ("photo.jpg", "photo.npy")


def test_what_is_good_for_three_channels_is_checked_again_for_four(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    picture().save(tmp_path / "photos" / "rgb.png")
    picture().convert("RGBA").save(tmp_path / "photos" / "rgba.png")
    faulty = {channels: [] for channels in (3, 4, 1, 5, 3, 4)}
    for channels in faulty:
        found = check(listed(tmp_path / "photos", channels), workers=0)
        faulty[channels] = [name for name, one in found.items() if one.fault is not None]
    assert faulty == {3: [], 4: ["rgb.png"], 1: [], 5: ["rgb.png", "rgba.png"]}


def test_files_of_other_channels_are_quarantined(tmp_path):
    folder = write_spectral(tmp_path / "images", 5)
    picture().save(folder / "photo.jpg")
    np.save(folder / "short.npy", smooth_levels(channels=4))
    listing = listed(folder, 5)
    dataset = freeze_dataset(tmp_path, listing, check(listing, workers=0), begun=False, max_bad_ratio=0.2)
    bad = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
    assert {one["file"]: one["reason"].partition(",")[0] for one in bad} == {
        "photo.jpg": "has 3 channels (RGB)",
        "short.npy": "has 4 channels",
    }
    assert dataset.images.channels == 5
    assert len(dataset.images) == 12
    again = freeze_dataset(tmp_path, listing, check(listing, workers=0), begun=True, max_bad_ratio=0.2)
    assert again.images.channels == 5


def test_an_array_that_becomes_another_is_bad(tmp_path):
    np.save(tmp_path / "x.npy", smooth_levels())
    images = checked_images(tmp_path, 5)
    for levels, reason in (
        (smooth_levels(channels=4), "has 4 channels, the encoder takes 5"),
        (smooth_levels(61), "its size has changed since it was checked"),
    ):
        np.save(tmp_path / "x.npy", levels)
        with pytest.raises(pil.BadImages) as raised:
            pil.decode(plan(images, batch_size=1), 0)
        assert raised.value.faults == {0: reason}


def test_dali_is_for_gray_and_rgb():
    gpu = torch.device("cuda")
    why = "DALI decodes to 1 or 3 channels and the encoder takes 5"
    assert choose_loader("auto", gpu, 2, 5) == (
        PilLoader(workers=2, pin_memory=True),
        f"PIL in 2 processes, as {why}",
    )
    with pytest.raises(LoaderError) as raised:
        choose_loader("dali", torch.device("cpu"), 2, 5)
    assert str(raised.value) == f"--loader dali: {why}; take --loader pil"
