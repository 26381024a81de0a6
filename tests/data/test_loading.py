"""Sources and both loaders, on files that are really written."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import NOT_AN_IMAGE
from checked import checked_images, listed, upright
from disk import mode, umask_of
from PIL import Image

from bimkern.data import pil, skipped
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import BadImages, MicroBatches
from bimkern.data.decoding import decode_file
from bimkern.data.demo import demo_images
from bimkern.data.formats import BadImage, allow_pixels
from bimkern.data.listing import list_images
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.source import SourceError
from bimkern.data.sources.find import find_source
from bimkern.data.step_layout import StepLayout


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos with späces"
    for i, name in enumerate(("b/one.jpg", "b/two.PNG", "a/three.webp", "four.jpeg", "a/five.jpg")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(40 + i, 30, i).save(path)
    (root / "notes.txt").write_text("not an image")
    (root / "empty class").mkdir()
    return root


def batches(images, **changes):
    layout = StepLayout.uniform(**{"image_size": 16, "batch_size": 4, "micro_batch": 4} | changes)
    return MicroBatches(images=images, augment=RandomResizedCrop(), seed=3, layout=layout)


def steps_of(loader, data, first, last):
    return ResilientLoader(loader, data, lambda faults, steps_done: pytest.fail(str(faults))).steps(first, last)


def test_a_folder_is_listed_in_sorted_order_with_or_without_classes(folder):
    assert listed(folder).files == ("a/five.jpg", "a/three.webp", "b/one.jpg", "b/two.PNG", "four.jpeg")


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"x{300} cannot be read \(File name too long\)"):
        list_images(find_source(tmp_path / ("x" * 300)))
    with pytest.raises(SourceError, match="missing is not a folder"):
        listed(tmp_path / "missing")
    none = f"there is no JPEG, PNG, WebP, BMP, TIFF, GIF, JPEG 2000 or AVIF image in {tmp_path}"
    with pytest.raises(SourceError, match=f"{none}, and no other file"):
        listed(tmp_path)
    for name in ("a.HEIC", "b.heic", "notes.txt", "LICENSE"):
        (tmp_path / name).write_text("not an image")
    others = r"only other files \(2 .heic, 1 .txt, 1 without suffix\); convert images of other formats to JPEG or PNG"
    with pytest.raises(SourceError, match=f"{none}, {others}"):
        listed(tmp_path)


def test_content_decides_and_not_the_suffix(folder):
    (folder / "four.jpeg").rename(folder / "four")
    (folder / "b" / "one.jpg").rename(folder / "b" / "one.dat")
    (folder / "claims.jpg").write_text("not an image")  # the check says so
    (folder / "BMW").write_text("BM, as bitmaps begin")  # so does it of this
    (folder / "rest").write_text("not an image")
    os.mkfifo(folder / "pipe")
    listing = listed(folder)
    assert set(listing.files) == {"a/five.jpg", "a/three.webp", "b/one.dat", "b/two.PNG", "BMW", "claims.jpg", "four"}
    assert listing.others == {
        "notes.txt": "not opened, as its suffix is not that of an image",
        "pipe": "not a regular file",
        "rest": f"{NOT_AN_IMAGE}; convert images of other formats to JPEG or PNG",
    }
    assert listing.count_others() == "2 without suffix, 1 .txt"


def test_captions_are_not_opened(folder, monkeypatch):
    """There may be a million of them, on a disk of the network."""
    (folder / "four.jpeg").rename(folder / "four")
    (folder / "four.json").write_text("{}")
    opened, plain = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args: opened.append(path.name) or plain(path, *args))
    listed(folder)
    assert opened == ["four"]


def test_files_of_unknown_suffix_are_opened_side_by_side(folder, monkeypatch):
    for i in range(4):
        (folder / f"rest-{i}").write_text("not an image")
    all_open = threading.Barrier(4, timeout=60)
    monkeypatch.setattr(skipped, "is_image", lambda path: all_open.wait() < 0)
    assert sum(file.startswith("rest-") for file in listed(folder).others) == 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_a_file_that_unpacks_to_too_much_is_bad(tmp_path, monkeypatch, suffix):
    """PIL itself only warns up to twice the limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back at the end
    path = tmp_path / f"bomb.{suffix}"
    picture(60, 60).save(path)
    for limit, message in ((3599, "60 x 60 pixels, more than --max-pixels 3599 in all"), (1000, "--max-pixels 1000")):
        allow_pixels(limit)
        with pytest.raises(BadImage, match=message):
            decode_file(path)
    allow_pixels(3600)
    assert decode_file(path).pixels.size == (60, 60)


def test_linked_class_folders_are_followed_once(folder, tmp_path):
    (folder / "linked").symlink_to(folder / "a", target_is_directory=True)
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(9, 9).save(outside / "far.png")
    (folder / "z").symlink_to(outside, target_is_directory=True)
    names = [name.rpartition("/")[2] for name in listed(folder).files]
    assert sorted(names) == ["far.png", "five.jpg", "four.jpeg", "one.jpg", "three.webp", "two.PNG"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(30, 20).save(tmp_path / "turned.jpg", exif=exif)
    expected = (20, 30) if orientation >= 5 else (30, 20)
    assert tuple(checked_images(tmp_path).sizes[0]) == upright(tmp_path / "turned.jpg").size == expected


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_color_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture(8, 8).convert(mode).save(path)
    assert decode_file(path).pixels.mode == "RGB"


def test_batches_do_not_depend_on_micro_batches_or_workers(folder, loader):
    images = checked_images(folder)
    whole = list(loader(0).batches(batches(images), 0, 4))
    for micro_batch, workers in ((4, 2), (3, 0), (1, 2)):
        data = batches(images, micro_batch=micro_batch)
        steps = list(steps_of(loader(workers), data, 0, 4))
        assert [len(parts) for parts in steps] == [-(-4 // micro_batch)] * 4
        for parts, expected in zip(steps, whole, strict=True):
            assert torch.equal(torch.cat([part.images for part in parts]), expected.images)
            assert torch.equal(torch.cat([part.draw_ids for part in parts]), expected.draw_ids)


def test_the_state_of_a_loader_is_the_step(folder, loader):
    data = batches(checked_images(folder))
    *_, from_start = steps_of(loader(0), data, 0, 4)
    (later,) = steps_of(loader(0), data, 3, 4)
    assert torch.equal(later[0].images, from_start[0].images)
    assert np.array_equal(later[0].draw_ids, data[3].draw_ids)


def test_a_batch_may_be_larger_than_the_data_set(folder, loader):
    (batch,) = loader(0).batches(batches(checked_images(folder), batch_size=12, micro_batch=12), 0, 1)
    assert batch.images.shape == (12, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert len(set(batch.draw_ids.tolist())) == 12  # the same file in another epoch is another draw


def test_one_image_is_enough(tmp_path, loader):
    picture(9, 7).save(tmp_path / "only.png")
    (batch,) = loader(0).batches(batches(checked_images(tmp_path)), 5, 6)
    assert batch.images.shape == (4, 3, 16, 16)


def test_batches_are_the_callers_to_keep(folder, loader):
    kept = [(batch.images, batch.images.clone()) for batch in loader(2).batches(batches(checked_images(folder)), 0, 9)]
    assert all(torch.equal(images, copy) for images, copy in kept)


@pytest.mark.parametrize("workers", [0, 1])
def test_all_bad_images_of_a_micro_batch_are_reported_at_once(folder, loader, workers):
    data = batches(checked_images(folder), batch_size=5, micro_batch=5)
    (folder / "b" / "one.jpg").write_bytes(b"garbage")
    (folder / "four.jpeg").unlink()
    with pytest.raises(BadImages) as raised:
        list(loader(workers).batches(data, 0, 12))
    assert raised.value.faults == {
        2: f"{NOT_AN_IMAGE}; convert images of other formats to JPEG or PNG",
        4: "No such file or directory",
    }


@pytest.mark.parametrize(
    ("interpolation", "resampling"),
    [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_a_crop_is_pils_resize_of_the_box_mirrored_where_asked(folder, interpolation, resampling):
    images = checked_images(folder)
    for flip in (0.0, 1.0):
        crop = RandomResizedCrop(scale=(1, 1), ratio=(4 / 3, 4 / 3), flip=flip, interpolation=interpolation)
        layout = StepLayout.uniform(image_size=16, batch_size=5, micro_batch=5)
        data = MicroBatches(images=images, augment=crop, seed=0, layout=layout)
        batch = pil.decode(data, 0)
        for pixels, draw in zip(batch.images, batch.draw_ids, strict=True):
            image = upright(images.path(int(draw)))
            width = image.width
            left = (width - 40) // 2
            expected = image.resize((16, 16), resampling, (left, 0, left + 40, 30))
            expected = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1)
            assert torch.equal(pixels, expected.flip(-1) if flip else expected)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"cannot be written .*; set XDG_CACHE_HOME to a folder that can"):
        demo_images()


def test_demo_photographs_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with umask_of(0o027):
        photographs = demo_images()
    train, held_out = list_images(photographs), list_images(photographs.held_out)
    (folder,), before = photographs.paths, photographs.stat(train.files[0])
    assert mode(folder / train.files[0]) == 0o640
    assert mode(folder) == mode(folder.parent) == 0o750
    assert train.files == held_out.files
    assert len(train) >= 10
    assert demo_images() == photographs
    assert photographs.stat(train.files[0]) == before
    assert [p.name for p in (tmp_path / "bimkern").iterdir()] == ["demo-v1"]
