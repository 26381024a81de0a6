"""A user's own class, named on the command line."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bad_files import NOT_AN_IMAGE, picture
from source_forms import batches_of, data_of, same

from bimkern import pieces
from bimkern.data.check import check, check_file
from bimkern.data.labels import read_labels
from bimkern.data.listing import list_images
from bimkern.data.pil import PilLoader
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder

MODULE = """
from dataclasses import dataclass
import time
from io import BytesIO
from pathlib import Path

from bad_files import encoded, picture
from bimkern import pieces
from bimkern.data.source import Source
import numpy as np

class Mine:
    made = 0

    def __init__(self):
        Mine.made += 1

    def __len__(self):
        return 12

    def read(self, i):
        image = picture(30, 24, seed=i)
        return np.asarray(image) if i % 2 else encoded("PNG", image)

    def label(self, i):
        return "odd" if i % 2 else "even"

class HalfLabeled(Mine):
    def label(self, i):
        return "odd" if i % 2 else None

class Timed(Mine):
    def stat(self, i):
        return 1, 17

class NumpyTimed(Mine):
    def stat(self, i):
        return np.int64(1), np.float32(17)

class NoTime(Mine):
    times = dict.fromkeys(range(12), 17)

    def stat(self, i):
        return 1, self.times[i]

class Wrong(Mine):
    def read(self, i):
        return [np.zeros((9, 8), np.float32), b"no image"][i] if i < 2 else super().read(i)

class Counted(Mine):
    at_once, most = 0, 0

    def read(self, i):
        cls = type(self)
        cls.at_once += 1
        cls.most = max(cls.most, cls.at_once)
        time.sleep(0.02)
        cls.at_once -= 1
        return super().read(i)

class Safe(Counted):
    thread_safe = True

class Arrays(Mine):
    dtype = np.uint8

class Odd(Mine):
    dtype = "pixels"

class Raises:
    def __init__(self):
        raise RuntimeError("no key")

class Nothing:
    pass

number = 3

@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class Vault:
    paths: tuple[Path, ...] = ()
    held_out: Source | None = None

    @classmethod
    def accepts(cls, place):
        return place.endswith(".vault")

    @classmethod
    def of(cls, places):
        return cls(paths=tuple(map(Path, places)))

    def files(self):
        return {"x.png": None}

    def stat(self, file):
        return 1, 2

    def open(self, file):
        return BytesIO(encoded("PNG"))

    def path(self, file):
        return None

def make():
    return Mine()
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_sources.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    sys.modules.pop("my_sources", None)
    pieces._NAMED[Source].pop("Vault", None)
    sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]


@pytest.mark.parametrize("name", ["Mine", "Timed", "make"])
@pytest.mark.parametrize("workers", [0, 2])
def test_encoded_images_and_arrays_give_what_a_folder_of_them_gives(tmp_path, name, workers):
    (tmp_path / "photos").mkdir()
    for i in range(12):
        picture(30, 24, seed=i).save(tmp_path / "photos" / f"{i:02d}.png")
    loader, place = PilLoader(workers=workers), Path(f"my_sources:{name}")
    theirs = batches_of(loader, data_of(ImageFolder(paths=(tmp_path / "photos",))))
    assert same(batches_of(loader, data_of(find_source(place))), theirs)
    assert same(batches_of(loader, data_of(find_source(place)), first=5), theirs[5:])


@pytest.mark.parametrize(("name", "at_once"), [("Counted", [1]), ("Safe", [2, 3, 4])])
def test_threads_read_one_after_the_other_unless_the_class_says_that_they_need_not(name, at_once):
    source = find_source(Path(f"my_sources:{name}"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(source.open, [f"{i:09d}" for i in range(8)]))
    counted = getattr(sys.modules["my_sources"], name)
    assert counted.most in at_once
    assert sys.modules["my_sources"].Mine.made == 1


def test_a_class_with_a_dtype_holds_arrays():
    """For these, --loader auto takes PIL."""
    found = {name: find_source(Path(f"my_sources:{name}")).holds_arrays for name in ("Mine", "Arrays")}
    assert found == {"Mine": False, "Arrays": True}


def test_labels():
    source = find_source(Path("my_sources:Mine"))
    labels = read_labels(source, list_images(source).files)
    assert (labels.classes, labels.numbers.tolist()[:3]) == (("even", "odd"), [0, 1, 0])


def test_an_image_without_a_label_is_named():
    source = find_source(Path("my_sources:HalfLabeled"))
    with pytest.raises(SourceError, match=r"my_sources:HalfLabeled: 000000000, row 0, has no label; every image needs"):
        read_labels(source, list_images(source).files)


def test_without_a_time_images_are_checked_at_every_start(monkeypatch):
    checked = []
    monkeypatch.setattr(
        "bimkern.data.check.check_file", lambda *arguments: checked.append(arguments[1]) or check_file(*arguments)
    )
    for name, expected in (("Mine", 24), ("Timed", 12), ("NumpyTimed", 12)):
        checked.clear()
        for _ in range(2):
            check(list_images(find_source(Path(f"my_sources:{name}"))), workers=0)
        assert len(checked) == expected


def test_a_stat_that_fails_or_gives_no_number_makes_a_bad_image_now_and_later():
    source = find_source(Path("my_sources:NoTime"))
    listing, times = list_images(source), sys.modules["my_sources"].NoTime.times
    times[3] = float("nan")
    first = check(listing, workers=0)
    assert {int(file): one.fault for file, one in first.items() if one.fault} == {
        3: "cannot convert float NaN to integer"
    }
    times[3] = 17
    del times[5]  # which has been checked before
    times[6] = "yesterday"
    second = check(listing, workers=0)
    assert {int(file) for file, one in second.items() if one.fault} == {5, 6}


def test_what_is_no_image_is_a_bad_image():
    listing = list_images(find_source(Path("my_sources:Wrong")))
    faults = [one.fault for one in check(listing, workers=0).values()]
    assert faults[:3] == [
        "32 bits per channel (float32); state their range, as in --range 0 4095, or convert it to 8",
        f"{NOT_AN_IMAGE}; convert images of other formats to JPEG or PNG",
        None,
    ]
    assert listing.skip({"000000001": "bad"}) is listing  # it is a damaged image, not another file


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_sources:Absent", "my_sources has no 'Absent'; name a class with __len__ and read"),
        ("my_sources:number", "my_sources has 'number', which cannot be called; name a class with __len__ and read"),
        ("my_sources:Nothing", "my_sources:Nothing has no __len__ and no read; it needs __len__ and read"),
        ("my_sources:Odd", "my_sources:Odd has the dtype 'pixels', which NumPy does not know"),
        ("my_sources:Raises", r"my_sources:Raises\(\) ended with RuntimeError: no key"),
        ("no_such_module:Mine", r"no_such_module cannot be imported \(ModuleNotFoundError: No module named 'no_such_m"),
    ],
)
def test_what_cannot_be_used_is_named(place, message):
    with pytest.raises(SourceError, match=message):
        list_images(find_source(Path(place)))


@pytest.mark.parametrize("place", ["secret.vault", "my_sources:Vault"])
def test_a_registered_source_is_found_by_what_it_accepts_and_by_its_name(tmp_path, monkeypatch, place):
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_sources")
    source = find_source(Path(place))
    assert type(source).__name__ == "Vault"
    assert list_images(source).files == ("x.png",)
