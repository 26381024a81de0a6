"""Shards are read in place, in any order, and give what the folder of their files gives."""

import os
import shutil
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from checked import labels_by_file
from source_forms import CLASSES, add, batches_of, data_of, files_of, same, write_tars

from bimkern.data.batches import BadImages
from bimkern.data.formats import BadImage
from bimkern.data.labels import labeled_images, read_labels
from bimkern.data.listing import list_images
from bimkern.data.loader import choose_loader
from bimkern.data.pil import PilLoader, decode
from bimkern.data.source import SourceError, open_in
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.sources.shards import _OPEN_SHARDS, ImageShards, _opened


@pytest.fixture
def shards(root, tmp_path):
    return write_tars(root, tmp_path / "shards")


def labels_of(source):
    return read_labels(source, list_images(source).files)


def test_shards_list_and_check_as_the_folder_of_their_files(root, shards):
    ours, theirs = list_images(find_source(shards[0].parent)), list_images(ImageFolder(paths=(root,)))
    assert isinstance(ours.source, ImageShards)
    assert (ours.files, ours.others) == (theirs.files, theirs.others)
    for file in ours.files:
        with open_in(ours.source, file) as one, open_in(theirs.source, file) as other:
            assert one.read() == other.read()


def test_names_that_are_no_text_are_in_the_order_of_the_folder(root, tmp_path):
    """As text, their bytes come before some other characters; as bytes, after them."""
    photo = (root / "ant" / "00.jpg").read_bytes()
    for name in (b"caf\xe9.jpg", "caf\uffee.jpg".encode(), "café.jpg".encode(), b"cafe.jpg", b"\x80"):
        (root / "ant" / os.fsdecode(name)).write_bytes(photo)
    source = find_source(write_tars(root, tmp_path / "shards"))
    ours, theirs = list_images(source), list_images(ImageFolder(paths=(root,)))
    assert (ours.files, ours.others) == (theirs.files, theirs.others)
    assert list(ours.files) == sorted(ours.files)
    assert same(
        batches_of(PilLoader(workers=0), data_of(source)),
        batches_of(PilLoader(workers=0), data_of(ImageFolder(paths=(root,)))),
    )


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise")
def test_the_members_of_a_micro_batch_are_asked_for_before_the_first_is_read(root, shards, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda number, offset, size, advice: asked.append((offset, size)))
    source, read = find_source(shards[0].parent), []
    data, opened = data_of(source), ImageShards.open

    def watch(self, file):
        read.append((*self._table.find(file)[1:], len(asked)))
        return opened(self, file)

    monkeypatch.setattr(ImageShards, "open", watch)
    decode(data, 0)
    assert asked == [(offset, size) for offset, size, _ in read]
    assert {count for *_, count in read} == {len(asked)}
    files = list(source.files())
    shards[0].unlink()
    _opened.cache_clear()
    source.read_ahead([*files, "no/such.jpg"])  # says nothing


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_bit_for_bit_also_when_resumed(root, shards, workers):
    loader = PilLoader(workers=workers)
    theirs = batches_of(loader, data_of(ImageFolder(paths=(root,))))
    source = find_source(shards[0].parent)
    assert same(batches_of(loader, data_of(source)), theirs)
    for step in (1, 5):  # in mid-epoch, with a new source
        assert same(batches_of(loader, data_of(find_source(shards[0].parent)), first=step), theirs[step:])


def test_dali_takes_them_too(root, shards):
    pytest.importorskip("nvidia.dali")
    loader = choose_loader("dali", torch.device("cpu"), 1)[0]
    ours = batches_of(loader, data_of(find_source(shards[0].parent)))
    theirs = batches_of(PilLoader(workers=0), data_of(ImageFolder(paths=(root,))))
    assert all(torch.equal(one.draw_ids, other.draw_ids) for one, other in zip(ours, theirs, strict=True))
    difference = torch.stack([a.images.int() - b.images.int() for a, b in zip(ours, theirs, strict=True)])
    assert difference.abs().float().mean() < 1


@pytest.mark.parametrize(
    "pattern", ["part-{0000..0002}.tar", "part-*.tar", "part-000{0,1,2}.tar", "*/../part-????.tar"]
)
def test_patterns_name_shards(shards, pattern):
    (shards[0].parent / "folder").mkdir()
    names = list(list_images(find_source(shards[0].parent / pattern)).files)
    assert names == list(list_images(find_source(shards)).files) == list(list_images(find_source(shards[::-1])).files)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("part-{0000..0003}.tar", "part-0003.tar does not exist"),
        ("none-*.tar", r"none-\*.tar names no .tar file"),
        ("part-0000.tar.gz", "part-0000.tar.gz is compressed, and cannot be read at any position; unpack it to a .tar"),
        ("missing.tar", "missing.tar does not exist"),
    ],
)
def test_shards_that_are_not_there_or_compressed_are_named(shards, name, message):
    with pytest.raises(SourceError, match=message):
        list_images(find_source(shards[0].parent / name))


def test_several_kinds_and_shards_of_one_name_are_refused(root, shards, tmp_path):
    with pytest.raises(SourceError, match=r"of one kind, got .*photos \(read by ImageFolder\) and .*ImageShards"):
        find_source([root, shards[0]])
    (tmp_path / "other").mkdir()
    shutil.copy(shards[0], tmp_path / "other")
    with pytest.raises(SourceError, match=r"have the same name, which tells their images apart; rename one"):
        list_images(find_source([shards[0], tmp_path / "other" / shards[0].name]))


def test_paths_that_are_in_several_shards_begin_with_the_name_of_their_shard(root, tmp_path):
    for name in ("one", "two"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for i, file in enumerate(files_of(root)[: 3 if name == "one" else 5]):
                add(tar, f"ant/{i}.jpg", file.read_bytes())
    listing = list_images(find_source([tmp_path / "two.tar", tmp_path / "one.tar"]))
    assert listing.files == (*(f"one/ant/{i}.jpg" for i in range(3)), *(f"two/ant/{i}.jpg" for i in range(5)))
    assert set(listing.source.labels(listing.files).values()) == {"ant"}


def test_dot_files_are_no_data_and_content_decides_where_the_suffix_does_not(root, tmp_path):
    photo = (root / "ant" / "00.jpg").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a/._x.jpg", ".y.jpg", "x", "x.cls", "x.dat"):
            add(tar, name, photo)
        add(tar, "rest.bin", b"not an image")
    listing = list_images(find_source(tmp_path / "x.tar"))
    assert listing.files == ("x", "x.dat")
    assert set(listing.others) == {"x.cls", "rest.bin"}


def test_of_a_member_without_a_known_suffix_only_the_first_bytes_are_read_to_list_it(root, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "x", (root / "ant" / "00.jpg").read_bytes())
        add(tar, "rest.bin", bytes(100_000))
        add(tar, "short", b"x")
    source = find_source(tmp_path / "x.tar")
    source.stat("x")  # which makes the index
    sizes, plain = [], os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, at: sizes.append(size) or plain(descriptor, size, at))
    listing = list_images(source)
    assert (listing.files, set(listing.others)) == (("x",), {"rest.bin", "short"})
    assert sorted(sizes)[-1] <= 16


def test_damaged_parts_are_named_with_shard_and_offset_and_the_rest_is_used(root, shards, caplog, tmp_path):
    """A hostile member, and a last shard that ends in the middle of a member."""
    with tarfile.open(shards[0], "a") as tar:
        at = add(tar, "../evil.jpg", (root / "ant" / "00.jpg").read_bytes())
    with tarfile.open(shards[2]) as tar:
        *_, last = tar
    os.truncate(shards[2], last.offset_data + last.size // 2)
    before = sorted(path for path in tmp_path.parent.rglob("*") if "evil" in path.name)
    listing = list_images(find_source(shards[0].parent))
    assert len(listing.files) + last.name.endswith(("jpg", "png", "webp")) == 12
    assert listing.others[f"part-0000.tar, offset {at}: ../evil.jpg"] == "a path with '..'"
    reason = listing.others[f"part-0002.tar, offset {last.offset}: {last.name}"]
    assert reason == f"truncated, or of a wrong size: {last.size} bytes, {last.size // 2} follow"
    assert f"part-0000.tar, offset {at}: ../evil.jpg: a path with '..'; left out" in caplog.text
    assert f"part-0002.tar, offset {last.offset}: {last.name}: truncated" in caplog.text
    assert before == sorted(path for path in tmp_path.parent.rglob("*") if "evil" in path.name)
    batches_of(PilLoader(workers=0), data_of(listing.source))


def test_a_shard_of_damaged_parts_alone_has_no_other_files(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "../evil.jpg", b"content")
    with pytest.raises(SourceError, match=r"image in .*x.tar, and no other file; damaged parts left out: 1$"):
        list_images(find_source(tmp_path / "x.tar"))


def test_a_shard_that_changes_during_a_run_is_a_fault_of_its_images(shards):
    """Also where it stays as long, and where it is open."""
    data = data_of(find_source(shards[0].parent), batch_size=12)
    for shard in shards:
        with shard.open("r+b") as file:
            file.write(b"other")
    with pytest.raises(BadImages) as raised:
        list(PilLoader(workers=0).batches(data, 0, 1))
    assert len(raised.value.faults) == 12
    assert {fault.rpartition("/")[2] for fault in raised.value.faults.values()} == {
        f"part-000{i}.tar has changed since it was indexed" for i in range(3)
    }


def test_a_member_that_is_gone_is_a_bad_image(shards):
    with pytest.raises(BadImage, match="no such member in any shard"):
        open_in(find_source(shards[0].parent), "missing.jpg")


def write_one_member_each(folder, contents):
    for i, content in enumerate(contents):
        with tarfile.open(folder / f"{i}.tar", "w") as tar:
            add(tar, f"{i:02d}.jpg", content)
    return find_source(folder / "*.tar")


def test_more_shards_than_a_process_keeps_open(root, tmp_path):
    photo = (root / "ant" / "00.jpg").read_bytes()
    source = write_one_member_each(tmp_path, [photo] * (_OPEN_SHARDS + 6))
    _opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for file in list_images(source).files:
            with open_in(source, file) as opened:
                assert opened.read() == photo
    assert len(os.listdir("/proc/self/fd")) - before <= _OPEN_SHARDS


def test_a_shard_stays_open_while_it_is_read_whatever_other_threads_open(tmp_path, monkeypatch):
    """Whatever shards are opened between two calls of a read, it gets the bytes of its own."""
    source = write_one_member_each(tmp_path, [b"%02d" % i for i in range(_OPEN_SHARDS + 6)])
    files, others, plain = list_images(source).files, [], os.pread

    def read(file):
        with open_in(source, file) as opened:
            return opened.read()

    def pread(descriptor, size, offset):
        if not others:
            others.append(None)
            with ThreadPoolExecutor(7) as pool:
                others[:] = pool.map(read, files[1:])
        return plain(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert read(files[0]) == b"00"
    assert others == [file[:2].encode() for file in files[1:]]


def test_a_million_members_take_less_than_200_mb(tmp_path):
    """While they are indexed, and while shards that are indexed are opened."""
    count, names = 20_000, (f"a/class/of/some/length/{i:09d}.jpg" for i in range(20_000))
    with (tmp_path / "x.tar").open("wb") as file:
        for name in names:
            file.write(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))
    for _ in range(2):
        source = find_source(tmp_path / "x.tar")
        tracemalloc.start()
        try:
            source.stat("a/class/of/some/length/000000007.jpg")
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 100 * count
        assert peak < 300 * count


def test_labels_are_class_folders(root, shards):
    source = labeled_images(shards[0].parent)
    assert labels_by_file(labels_of(source)) == labels_by_file(labels_of(labeled_images(root)))
    assert labels_of(source).classes == CLASSES


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_labels_are_members_of_the_same_key(root, tmp_path, suffix):
    photos = [path.read_bytes() for path in files_of(root)[:4]]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, photo in enumerate(photos):
            add(tar, f"{i}.{suffix}", (f"{i % 2}\n" if suffix == "cls" else f'{{"label": {i % 2}}}').encode())
            add(tar, f"{i}.v1.jpg", photo)
    labels = labels_of(find_source(tmp_path / "x.tar"))
    assert labels_by_file(labels) == {f"{i}.v1.jpg": i % 2 for i in range(4)}
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        add(tar, "0.jpg", photos[0])
        add(tar, "1.json", b"no JSON")
        add(tar, "1.jpg", photos[1])
    source = find_source(tmp_path / "y.tar")
    with pytest.raises(SourceError, match=r"0.jpg has no label: its shard has no 0.cls or .json, nor does its path"):
        source.labels(["0.jpg"])
    with pytest.raises(SourceError, match=r"1.json is no JSON object"):
        source.labels(["1.jpg"])


def test_train_and_val_may_be_shards(root, tmp_path):
    for part in ("train", "val"):
        write_tars(root, tmp_path / "set" / part, count=2)
    source = labeled_images(tmp_path / "set")
    assert [type(one) for one in (source, source.held_out)] == [ImageShards, ImageShards]
    assert source.held_out.paths == (Path(tmp_path / "set" / "val"),)
