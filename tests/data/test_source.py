"""Sources: what names their images have, and what is refused."""

import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from bad_files import picture
from checked import checked_images
from own_pieces import Archive
from PIL import Image

from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import BadImages, MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.listing import list_images
from bimkern.data.pil import PilLoader
from bimkern.data.source import SourceError
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.step_layout import StepLayout


@pytest.fixture
def two(tmp_path):
    """Two folders, with files of the same names, and nothing beside them."""
    for folder in ("cats", "dogs"):
        (tmp_path / "all" / folder / "sub").mkdir(parents=True)
        for i, name in enumerate(("0.jpg", "sub/1.jpg", "note.txt")):
            picture(40 + i, 30, seed=i).save(tmp_path / "all" / folder / name, "JPEG")
    return tmp_path / "all" / "cats", tmp_path / "all" / "dogs"


def micro_batches(images):
    layout = StepLayout.uniform(image_size=16, batch_size=4, micro_batch=4)
    return MicroBatches(images=images, augment=RandomResizedCrop(), seed=3, layout=layout)


def test_several_folders_are_the_folder_that_holds_them(two):
    """So their sample ids follow from the names alone, in whatever order they are given."""
    both, above = ImageFolder(paths=two), ImageFolder(paths=(two[0].parent,))
    assert both.files() == above.files() == ImageFolder(paths=two[::-1]).files()
    listing = list_images(both)
    assert listing.files == ("cats/0.jpg", "cats/sub/1.jpg", "dogs/0.jpg", "dogs/sub/1.jpg")
    assert listing.others.keys() == {"cats/note.txt", "dogs/note.txt"}
    for file in listing.files:
        assert both.path(file).samefile(above.path(file))
        assert both.stat(file) == above.stat(file)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("a/x", "b/x"), "/a/x and .*/b/x have the same name, which tells their images apart; rename one"),
        (("a", "a/x"), "/a/x is named twice, or lies inside .*/a; name every image once"),
        (("a", "./a"), "/a is named twice, or lies inside .*/a; name every image once"),
    ],
    ids=str,
)
def test_folders_whose_images_would_have_one_name_are_refused(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        ImageFolder(paths=tuple(tmp_path.joinpath("..", tmp_path.name, path) for path in paths))


def test_images_that_are_no_files_are_loaded_like_files(folder, tmp_path, loader):
    with ZipFile(tmp_path / "images.zip", "w") as members:
        for photo in folder.glob("*.jpg"):
            members.write(photo, photo.name)
    listing = list_images(Archive(archive=tmp_path / "images.zip"))
    images = readable(listing, check(listing, workers=0))
    assert not images.pil_only.any()
    (batch,) = loader(1).batches(micro_batches(images), 0, 1)
    (expected,) = loader(1).batches(micro_batches(checked_images(folder)), 0, 1)
    assert torch.equal(batch.draw_ids, expected.draw_ids)
    assert torch.equal(batch.images, expected.images)


def test_what_one_source_was_checked_for_says_nothing_of_another_one(tmp_path, monkeypatch):
    """They read the same file, and differ in a field that decides what an image holds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    picture(40, 30).save(tmp_path / "x.bmp")
    sides = [check(list_images(Shrunk(file=tmp_path / "x.bmp", by=by)), workers=0)["x.bmp"].width for by in (1, 2, 1)]
    assert sides == [40, 20, 40]


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """An image that is made smaller when it is opened."""

    file: Path
    by: int
    held_out = None

    @property
    def paths(self):
        return (self.file,)

    def files(self):
        return {self.file.name: None}

    def stat(self, file):
        return 1, self.file.stat().st_mtime_ns

    def open(self, file):
        stream = BytesIO()
        with Image.open(self.file) as image:
            image.reduce(self.by).save(stream, "BMP")
        stream.seek(0)
        return stream

    def path(self, file):
        return None


def test_an_error_of_a_source_is_a_fault_of_its_image(folder, tmp_path):
    with ZipFile(tmp_path / "images.zip", "w") as members:
        members.write(folder / "0.jpg", "0.jpg")
    listing = list_images(Archive(archive=tmp_path / "images.zip"))
    images = readable(listing, check(listing, workers=0))
    shutil.copy(folder / "0.jpg", tmp_path / "images.zip")
    with pytest.raises(BadImages) as raised:
        list(PilLoader(workers=0).batches(micro_batches(images), 0, 1))
    assert raised.value.faults == {0: "File is not a zip file"}
