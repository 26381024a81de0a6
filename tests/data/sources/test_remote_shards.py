"""Shards and tables at addresses, in fsspec's file system in memory and at a local HTTP server."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from http_folder import served
from interop import import_or_skip
from row_forms import write_pngs, write_table
from source_forms import add, batches_of, data_of, files_of, same, write_tars

from bimkern.data.check import check
from bimkern.data.labels import read_labels
from bimkern.data.listing import list_images
from bimkern.data.pil import PilLoader
from bimkern.data.source import SourceError
from bimkern.data.sources import remote_shards
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder

pytestmark = pytest.mark.usefixtures("without_pauses")


@pytest.fixture
def folder(root, tmp_path):
    """A folder of three shards and, in `tables`, of two Parquet files."""
    return write_tars(root, tmp_path / "stored")[0].parent


@pytest.fixture
def server(folder):
    import_or_skip("aiohttp")
    with served(folder) as server:
        yield server


@pytest.fixture
def memory(folder):
    fsspec = import_or_skip("fsspec")
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield files
    files.store.clear()


def shards_at(server, name="part-{0000..0002}.tar"):
    return find_source(Path(f"{server.url}/{name}"))


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_at_a_server_give_what_their_folder_gives_also_when_resumed(root, server, workers):
    loader = PilLoader(workers=workers)
    theirs = batches_of(loader, data_of(ImageFolder(paths=(root,))))
    assert same(batches_of(loader, data_of(shards_at(server))), theirs)
    assert same(batches_of(loader, data_of(shards_at(server)), first=5), theirs[5:])


@pytest.mark.parametrize("names", [["part-*.tar"], [f"part-000{i}.tar" for i in range(3)]])
def test_shards_in_memory_by_a_pattern_and_one_by_one(root, memory, names):
    places = [Path(f"memory://bucket/{name}") for name in names]
    ours, theirs = list_images(find_source(places)), list_images(ImageFolder(paths=(root,)))
    assert (ours.files, ours.others) == (theirs.files, theirs.others)
    assert read_labels(ours.source, ours.files).classes == ("ant", "bee")


def test_an_index_and_images_are_asked_for_once_however_the_shards_are_named(server):
    for name in ("part-{0000..0002}.tar", "part-000{0,1,2}.tar"):
        check(list_images(shards_at(server, name)), workers=0)
        batches_of(PilLoader(workers=0), data_of(shards_at(server, name)))
    ranges = list(server.asked)
    assert all(wanted for _, wanted in ranges)
    assert len(ranges) == len(set(ranges)) == 3 + 12  # an index of each shard, and all images


def test_labels_are_members_of_the_same_key(tmp_path, monkeypatch):
    import_or_skip("aiohttp")
    monkeypatch.setattr(remote_shards, "_LABELS", 3)
    (tmp_path / "stored").mkdir()
    with tarfile.open(tmp_path / "stored" / "x.tar", "w") as tar:
        for i in range(10):
            add(tar, f"{i}.cls", f"{i % 3}".encode())
            add(tar, f"{i}.jpg", b"")
    with served(tmp_path / "stored") as server:
        source = find_source(Path(f"{server.url}/x.tar"))
        labels = read_labels(source, list_images(source).files)
    assert labels.numbers.tolist() == [i % 3 for i in range(10)]
    assert not [
        path for path in (tmp_path / "cache").rglob("remote-v1/*/*") if path.is_file()
    ]  # a block of the disk each


def test_a_label_that_cannot_be_read_is_said_and_not_taken_from_the_folder(tmp_path):
    import_or_skip("aiohttp")
    (tmp_path / "stored").mkdir()
    with tarfile.open(tmp_path / "stored" / "x.tar", "w") as tar:
        add(tar, "folder/0.cls", b"7")
        add(tar, "folder/0.jpg", b"")
    with served(tmp_path / "stored") as server:
        source = find_source(Path(f"{server.url}/x.tar"))
        files = list_images(source).files
        server.failing += 300 * ["/x.tar"]
        with pytest.raises(SourceError, match=r"the label in folder/0.cls cannot be read: .*x.tar cannot be read .503"):
            source.labels(files)


def test_of_large_members_the_headers_alone_are_read(tmp_path):
    import_or_skip("aiohttp")
    (tmp_path / "stored").mkdir()
    with tarfile.open(tmp_path / "stored" / "x.tar", "w") as tar:
        for i in range(4):
            add(tar, f"{i}.jpg", bytes(3_000_000))
        for i in range(400):
            add(tar, f"{i}.cls", b"1")
    with served(tmp_path / "stored") as server:
        source = find_source(Path(f"{server.url}/x.tar"))
        assert len(source.files()) == 404
    sizes = [int(last) - int(first) + 1 for first, last in (wanted[6:].split("-") for _, wanted in server.asked)]
    assert sum(sizes) < 2_600_000
    assert len(sizes) < 8


def test_a_part_that_fails_is_asked_for_again_and_one_that_keeps_failing_is_a_bad_image(server):
    server.failing += 300 * ["/part-0001.tar"]
    with pytest.raises(SourceError, match=r"part-0001.tar cannot be read \(503"):
        list_images(shards_at(server))
    server.failing[:] = ["/part-0000.tar", "/part-0002.tar"]
    listing = list_images(shards_at(server))
    server.failing += ["/part-0000.tar", *300 * ["/part-0001.tar"]]
    faults = [one.fault for one in check(listing, workers=0).values() if one.fault]
    assert 0 < len(faults) < 12
    assert all("part-0001.tar cannot be read (503" in fault for fault in faults)


def test_a_shard_that_is_gone_makes_bad_images(memory):
    source = find_source(Path("memory://bucket/part-*.tar"))
    listing = list_images(source)
    memory.store.pop("/bucket/part-0001.tar")
    faults = [one.fault for one in check(listing, workers=0).values() if one.fault]
    assert 0 < len(faults) < 12
    assert all(fault == "memory://bucket/part-0001.tar cannot be read (there is none)" for fault in faults)


def test_a_shard_that_changes_is_indexed_again(root, memory):
    list_images(find_source(Path("memory://bucket/part-*.tar")))
    with tarfile.open(fileobj=(content := BytesIO()), mode="w") as tar:
        add(tar, "new.jpg", (root / "ant" / "00.jpg").read_bytes())
    memory.pipe("/bucket/part-0001.tar", content.getvalue())
    assert "new.jpg" in list_images(find_source(Path("memory://bucket/part-*.tar"))).files


def test_a_server_that_ignores_ranges_is_named(server, folder):
    server.answers_ranges = False
    faults = {one.fault for one in check(list_images(shards_at(server)), workers=0).values()}
    assert len(faults) == 3
    assert all(
        "cannot be read (the server sends whole files where parts are asked for; copy them" in one for one in faults
    )
    for i in range(3):
        with (folder / f"part-000{i}.tar").open("ab") as file:
            file.write(bytes(2_000_000))
    server.asked.clear()
    with pytest.raises(SourceError, match=r"part-0000.tar cannot be read \(the server sends whole files where"):
        list_images(shards_at(server))
    assert server.paths == ["/part-0000.tar"]  # the others are not sent


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "memory://bucket",
            r"memory://bucket holds .tar files and no image; name them, as in --data 'memory://bucket/\*.tar'",
        ),
        ("memory://bucket/part-{3..1}.tar", r"memory://bucket/part-\{3..1\}.tar names no file"),
        ("memory://bucket/x.tar.gz", r"x.tar.gz is compressed, and cannot be read at any position; store it as a .tar"),
        ("memory://bucket/no.tar", r"memory://bucket/no.tar cannot be read \(there is none\)"),
        ("memory://bucket/no-*.tar", r"memory://bucket/no-\*.tar names no file"),
        (
            "memory://bucket/list.csv",
            r"memory://bucket/list.csv: .csv files are not read at an address; copy it",
        ),
        ("memory://bucket/x.npz", r"x.npz: .npz files are not read at an address"),
    ],
)
def test_what_is_not_read_there_is_refused_in_a_line(memory, place, message):
    with pytest.raises(SourceError, match=message):
        list_images(find_source(Path(place)))


def test_shards_and_tables_beside_other_files_are_named_with_their_folder(memory):
    memory.pipe("/bucket/manifest.json", b"{}")
    with pytest.raises(SourceError, match=r"name them, as in --data 'memory://bucket/\*.tar'"):
        list_images(find_source(Path("memory://bucket")))
    for file in ("README.md", "data/train-0.parquet", "data/train-1.parquet", "x.tar"):
        memory.pipe(f"/set/{file}", b"#")
    line = r"memory://set holds .parquet files and no image; name them, as in --data 'memory://set/data/\*.parquet'"
    with pytest.raises(SourceError, match=line):
        list_images(find_source(Path("memory://set")))
    memory.pipe("/set/a.png", b"")
    assert list_images(find_source(Path("memory://set"))).files == ("a.png",)


def test_places_of_several_file_systems_are_refused(memory):
    with pytest.raises(SourceError, match=r"memory://a.tar, s3://b.tar: all must begin in the same way, as in s3://"):
        find_source([Path("memory://a.tar"), Path("s3://b.tar")])


@pytest.fixture
def tables(tmp_path):
    """Two Parquet files of PNGs in a folder, and the folder of the PNGs."""
    import_or_skip("pyarrow.parquet")
    photos = write_pngs(tmp_path / "pngs")
    (tmp_path / "tables").mkdir()
    files = files_of(photos)
    for i in range(2):
        chosen = files[6 * i : 6 * i + 6]
        contents, labels = [file.read_bytes() for file in chosen], [j % 2 for j in range(6)]
        write_table(tmp_path / "tables" / f"{i}.parquet", [file.name for file in chosen], contents, labels)
    return tmp_path / "tables", photos


@pytest.mark.parametrize("workers", [0, 2])
def test_tables_at_a_server_give_what_a_folder_gives_also_when_resumed(tables, workers):
    import_or_skip("aiohttp")
    folder, photos = tables
    loader = PilLoader(workers=workers)
    theirs = batches_of(loader, data_of(ImageFolder(paths=(photos,))))
    with served(folder) as server:
        address = Path(f"{server.url}/{{0..1}}.parquet:image")
        source = find_source(address)
        assert same(batches_of(loader, data_of(source)), theirs)
        assert read_labels(source, list_images(source).files).classes == ("ant", "bee")
        server.asked.clear()
        assert same(batches_of(loader, data_of(find_source(address)), first=5), theirs[5:])
        assert not server.asked  # all is in the cache


def test_a_table_that_cannot_be_read_is_named(tables):
    import_or_skip("aiohttp")
    with served(tables[0]) as server:
        server.failing += 300 * ["/1.parquet"]
        with pytest.raises(SourceError, match=r"1.parquet cannot be read \(.*503"):
            list_images(find_source(Path(f"{server.url}/{{0..1}}.parquet")))
        server.failing.clear()
        source = find_source(Path(f"{server.url}/{{0..1}}.parquet"))
        listing = list_images(source)
        server.failing += 300 * ["/1.parquet"]
        faults = [one.fault is not None for one in check(listing, workers=0).values()]
        assert faults == 6 * [False] + 6 * [True]
