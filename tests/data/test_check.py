"""The image check: it finds every bad file, once, and says why."""

import json
import os
import resource
import signal

import pytest
from bad_files import picture, write_bad_files, write_odd_files
from checked import listed
from image_kinds import turned_files
from PIL import Image
from source_forms import write_tars

from bimkern.data import check as checks
from bimkern.data.check import check, check_file, readable
from bimkern.data.check_cache import CheckCache
from bimkern.data.listing import list_images
from bimkern.data.source import SourceError
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.sources.sharded import ShardedImages
from bimkern.files.cache import cache_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@pytest.fixture
def looked_at(monkeypatch):
    """The files that are decoded in this process."""
    files, plain = [], check_file
    monkeypatch.setattr(
        checks, "check_file", lambda source, file, channels: files.append(file) or plain(source, file, channels)
    )
    return files


def cached(suffix):
    """Return the only file of a suffix in the cache: the journal, or the columns that a check ends with."""
    (path,) = (cache_folder() / "checked-v4").glob(f"*{suffix}")
    return path


@pytest.fixture
def interrupted(monkeypatch):
    """Let checks end as if their process did, after the last file is checked."""

    def stop(cache, found):
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckCache, "store", stop)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_bad_file_is_found_and_named_with_its_reason(folder, workers):
    reasons = write_bad_files(folder)
    write_odd_files(folder)
    for i in range(70):  # more than one process is given
        picture(seed=i).save(folder / f"good {i}.jpg")
    listing = listed(folder)
    assert reasons.keys() < set(listing.files)
    found = check(listing, workers=workers)
    assert list(found) == list(listing.files)
    assert {name for name, result in found.items() if result.fault} == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found[name].fault, f"{name}: {found[name].fault}"
    images = readable(listing, found)
    assert set(images.files) == set(listing.files) - reasons.keys()
    sizes = dict(zip(images.files, images.sizes.tolist(), strict=True))
    assert sizes["größe, turned.jpg"] == [48, 64]  # upright
    assert sizes["one pixel.png"] == [1, 1]


def test_what_has_been_checked_is_not_decoded_again(folder, looked_at):
    for i in range(5):
        picture(seed=i).save(folder / f"{i}.jpg")
    first = check(listed(folder), workers=0)
    assert len(looked_at) == 5
    assert check(listed(folder), workers=0) == first
    assert len(looked_at) == 5
    picture(seed=9).save(folder / "3.jpg")
    os.utime(folder / "4.jpg", ns=(0, 0))
    (folder / "2.jpg").unlink()
    second = check(listed(folder), workers=0)
    assert looked_at[5:] == ["3.jpg", "4.jpg"]
    assert second["3.jpg"].digest != first["3.jpg"].digest
    assert second["4.jpg"].digest == first["4.jpg"].digest
    assert list(second) == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]


def test_a_bad_file_is_looked_at_again(folder, looked_at):
    (folder / "link.jpg").symlink_to(".later")
    picture().save(folder / "good.jpg")
    assert check(listed(folder), workers=0)["link.jpg"].fault == "No such file or directory"
    picture().save(folder / ".later", "JPEG")
    looked_at.clear()
    assert check(listed(folder), workers=0)["link.jpg"].fault is None
    assert looked_at == ["link.jpg"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_machine_at_its_limits_is_not_the_images_fault(folder, monkeypatch, workers):
    for i in range(20):
        picture(seed=i).save(folder / f"{i}.jpg")
    listing = listed(folder)
    plain = check_file

    def without_handles(*args):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            return plain(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    monkeypatch.setattr(checks, "check_file", without_handles)
    with pytest.raises(SourceError, match=r"cannot be checked \(.*Too many open files.*\)") as raised:
        check(listing, workers=workers)
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(checks, "check_file", plain)
    assert all(result.fault is None for result in check(listing, workers=workers).values())


@pytest.mark.parametrize("position", ["bimkern.data.formats.Image.Image.load", "bimkern.data.check.upright_size"])
def test_an_image_for_which_there_is_no_memory_is_no_bad_image(folder, monkeypatch, position):
    picture().save(folder / "a.jpg")

    def out_of_memory(*args, **kwargs):
        raise MemoryError

    Image.init()  # its plugins load images of their own
    with monkeypatch.context() as patch:
        patch.setattr(position, out_of_memory)
        with pytest.raises(SourceError, match=r"cannot be checked \(.*out of memory\)"):
            check(listed(folder), workers=0)
    assert check(listed(folder), workers=0)["a.jpg"].fault is None


def test_an_image_is_not_copied_to_learn_its_upright_size(folder, monkeypatch):
    monkeypatch.delattr(Image.Image, "transpose")
    for name, (content, orientation) in turned_files(picture(60, 48)).items():
        (folder / name).write_bytes(content)
        found = check_file(ImageFolder(paths=(folder,)), name)
        assert (found.width, found.height) == ((48, 60) if orientation >= 5 else (60, 48))


def test_a_torn_or_foreign_journal_is_only_a_loss_of_time(folder, looked_at, monkeypatch):
    for i in range(3):
        picture(seed=i).save(folder / f"{i}.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(CheckCache, "store", lambda cache, found: None)
        found = check(listed(folder), workers=0)
    lines = cached(".jsonl").read_text().splitlines(keepends=True)
    foreign = ["[]\n", "7\n", '{"file": "0.jpg", "color": "red"}\n', '{"file": "elsewhere.jpg"}\n', "\xff\n"]
    cached(".jsonl").write_text("".join([lines[0], *foreign, lines[1][:20]]))
    looked_at.clear()
    assert check(listed(folder), workers=0) == found
    assert looked_at == ["1.jpg", "2.jpg"]
    assert list((cache_folder() / "checked-v4").iterdir()) == [cached(".columns")]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: bytes(len(content)), lambda content: b""]
)
def test_damaged_columns_are_only_a_loss_of_time(folder, looked_at, damage):
    for i in range(3):
        picture(seed=i).save(folder / f"{i}.jpg")
    found = check(listed(folder), workers=0)
    cached(".columns").write_bytes(damage(cached(".columns").read_bytes()))
    looked_at.clear()
    for _ in range(2):
        assert check(listed(folder), workers=0) == found
    assert looked_at == ["0.jpg", "1.jpg", "2.jpg"]


def test_files_that_come_back_are_remembered(folder, looked_at):
    for i in range(4):
        picture(seed=i).save(folder / f"{i}.jpg")
    (folder / "1.jpg").rename(folder.parent / "1.jpg")
    check(listed(folder), workers=0)
    (folder / "2.jpg").rename(folder.parent / "2.jpg")
    (folder.parent / "1.jpg").rename(folder / "1.jpg")
    check(listed(folder), workers=0)
    (folder.parent / "2.jpg").rename(folder / "2.jpg")
    found = check(listed(folder), workers=0)
    assert sorted(looked_at) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert {file: one.digest for file, one in found.items()} == {
        file: check_file(ImageFolder(paths=(folder,)), file).digest for file in found
    }


def test_a_cached_check_stats_many_files_at_once(folder, looked_at, monkeypatch):
    """Where a source can: its single stat() is for files that are to be checked."""
    for i in range(3):
        picture(seed=i).save(folder / f"{i}.jpg")
    (shard,) = write_tars(folder, folder.parent / "shards", count=1)
    source = find_source(shard)
    found = check(list_images(source), workers=0)
    monkeypatch.delattr(ShardedImages, "stat")
    assert check(list_images(source), workers=0) == found
    assert len(looked_at) == 3
    os.utime(shard, ns=(0, 0))
    monkeypatch.undo()
    again = check(list_images(source), workers=0)
    assert all(one.mtime_ns == 0 for one in again.values())


def test_a_cache_that_cannot_be_written_is_said_and_done_without(folder, monkeypatch, caplog):
    picture().save(folder / "a.jpg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "a.jpg"))
    assert check(listed(folder), workers=0)["a.jpg"].fault is None
    assert "set XDG_CACHE_HOME to another folder" in caplog.text


def test_names_that_are_no_text_are_remembered(folder, looked_at):
    picture().save(folder / os.fsdecode(b"caf\xe9.jpg"))
    found = check(listed(folder), workers=0)
    assert check(listed(folder), workers=0) == found
    assert len(looked_at) == 1


def test_a_killed_check_is_an_error_in_one_line_and_resumes_where_it_was(folder, monkeypatch):
    for i in range(200):
        picture(8, 8, seed=i).save(folder / f"{i:03}.png")
    plain = check_file

    def die(source, file, channels):
        if file == "150.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(source, file, channels)

    monkeypatch.setattr(checks, "check_file", die)
    with pytest.raises(SourceError, match=r"cannot be checked \(.*fewer workers need less memory") as raised:
        check(listed(folder), workers=1)
    assert "\n" not in str(raised.value)
    kept = len(cached(".jsonl").read_text().splitlines())
    assert kept % 16 == 0
    monkeypatch.setattr(checks, "check_file", plain)
    assert len(check(listed(folder), workers=0)) == 200
    assert not cached(".columns").with_suffix(".jsonl").exists()


def test_progress_counts_what_is_to_be_done(folder):
    for i in range(70):
        picture(8, 8, seed=i).save(folder / f"{i}.png")
    told = []
    check(listed(folder), workers=0, progress=lambda *counts: told.append(counts))
    assert told == [(16, 70), (32, 70), (48, 70), (64, 70), (70, 70)]
    check(listed(folder), workers=0, progress=lambda *counts: told.append(counts))
    assert len(told) == 5


def test_the_journal_is_json_lines(folder, interrupted):
    picture(20, 10).save(folder / "a.png")
    with pytest.raises(KeyboardInterrupt):
        check(listed(folder), workers=0)
    (record,) = map(json.loads, cached(".jsonl").read_text().splitlines())
    assert (record["file"], record["width"], record["height"], record["fault"]) == ("a.png", 20, 10, None)
