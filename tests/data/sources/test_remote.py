"""Images at addresses, in fsspec's file system in memory and at a local HTTP server."""

import os
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from http_folder import served
from interop import import_or_skip
from source_forms import batches_of, data_of, files_of, same

from bimkern.data.batches import BadImages
from bimkern.data.check import check
from bimkern.data.formats import BadImage
from bimkern.data.labels import labeled_images, read_labels
from bimkern.data.listing import list_images
from bimkern.data.pil import PilLoader
from bimkern.data.source import SourceError, open_in, title
from bimkern.data.sources.authority import Authority
from bimkern.data.sources.bounded_cache import BoundedCache
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.sources.remote_files import RemoteFiles

pytestmark = pytest.mark.usefixtures("without_pauses")


@pytest.fixture
def memory(root):
    """The files of the folder in memory; yields the file system's class, whose methods may be replaced."""
    fsspec = import_or_skip("fsspec")
    files = fsspec.filesystem("memory")
    for path in files_of(root):
        files.pipe(f"/bucket/photos/{path.relative_to(root).as_posix()}", path.read_bytes())
    yield type(files)
    files.store.clear()


@pytest.fixture
def server(root):
    import_or_skip("aiohttp")
    with served(root) as server:
        server.answers_ranges = False
        yield server


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_bit_for_bit_also_when_resumed(root, memory, workers):
    loader = PilLoader(workers=workers)
    theirs = batches_of(loader, data_of(ImageFolder(paths=(root,))))
    ours = data_of(find_source(Path("memory://bucket/photos")))
    assert ours.images.source.title == "memory://bucket/photos"
    assert same(batches_of(loader, ours), theirs)
    assert same(batches_of(loader, data_of(find_source(Path("memory://bucket/photos/"))), first=5), theirs[5:])


def test_a_server_gives_what_its_folder_gives_and_an_error_is_tried_again(root, server):
    server.failing += ["/ant/00.jpg", "/ant/00.jpg", "/bee/01.png"]
    source = find_source(Path(server.url))
    ours, theirs = list_images(source), list_images(ImageFolder(paths=(root,)))
    assert (ours.files, ours.others) == (theirs.files, theirs.others)
    assert same(
        batches_of(PilLoader(workers=0), data_of(source)), batches_of(PilLoader(workers=0), data_of(theirs.source))
    )
    assert server.failing == []


def test_what_keeps_failing_is_a_bad_image(root, server):
    server.failing += 3 * ["/ant/00.jpg"]
    found = check(list_images(find_source(Path(server.url))), workers=0)
    faults = {file: one.fault for file, one in found.items() if one.fault is not None}
    assert faults.keys() == {"ant/00.jpg"}
    assert "ant/00.jpg cannot be read (503" in faults["ant/00.jpg"]
    assert sum(path == "/ant/00.jpg" for path in server.paths) == 3


def test_a_short_read_is_tried_again_and_never_used(root, memory, monkeypatch):
    short, plain = [], memory.cat_file

    def cat_file(self, path, *arguments, **options):
        content = plain(self, path, *arguments, **options)
        short.append(path)
        return content[:-1] if short.count(path) < times else content

    monkeypatch.setattr(memory, "cat_file", cat_file)
    source = find_source(Path("memory://bucket/photos"))
    list_images(source)
    times = 3
    with open_in(source, "ant/00.jpg") as file:
        assert file.read() == (root / "ant" / "00.jpg").read_bytes()
    times = 9
    with pytest.raises(BadImage, match=r"bee/01.png cannot be read \(\d+ of \d+ bytes came\)"):
        open_in(source, "bee/01.png")
    assert short.count("/bucket/photos/bee/01.png") == 3


def test_a_file_that_is_gone_is_not_asked_for_again(memory, monkeypatch):
    data = data_of(find_source(Path("memory://bucket/photos")), batch_size=12)
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")  # nothing is cached
    vars(data.images.source._remote).pop("_cache")
    memory.store.pop("/bucket/photos/bee/01.png")
    with pytest.raises(BadImages) as raised:
        list(PilLoader(workers=0).batches(data, 0, 1))
    (fault,) = raised.value.faults.values()
    assert "bee/01.png" in fault


def test_what_was_read_is_kept_until_it_changes(memory, monkeypatch):
    reads, plain = [], memory.cat_file

    def cat_file(self, path, *arguments, **options):
        reads.append(path)
        return plain(self, path, *arguments, **options)

    monkeypatch.setattr(memory, "cat_file", cat_file)
    address, name = Path("memory://bucket/photos"), "/bucket/photos/ant/00.jpg"
    for _ in range(2):
        check(list_images(find_source(address)), workers=0)
        batches_of(PilLoader(workers=0), data_of(find_source(address)))
    assert reads.count(name) == 1
    memory().pipe(name, memory().cat("/bucket/photos/ant/06.jpg"))
    reads.clear()
    source = find_source(address)
    list_images(source)
    with open_in(source, "ant/00.jpg") as one, open_in(source, "ant/06.jpg") as other:
        assert one.read() == other.read()
    assert reads == [name]


@pytest.mark.parametrize("ranges", ["honoured", "ignored", "refused"])
def test_of_a_file_without_a_known_suffix_the_first_bytes_are_asked_for(root, memory, monkeypatch, ranges):
    content, asked, plain = (root / "ant" / "00.jpg").read_bytes(), [], memory.cat_file
    for name, value in (("photo", content), ("rest.bin", bytes(1000)), ("short", b"x"), ("empty", b"")):
        memory().pipe(f"/bucket/odd/{name}", value)

    def cat_file(self, path, start=None, end=None, **options):
        asked.append((path.rpartition("/")[2], start, end))
        if ranges == "refused" and end is not None:
            raise OSError("416 Range Not Satisfiable")
        return plain(self, path, start, end) if ranges == "honoured" else plain(self, path)

    monkeypatch.setattr(memory, "cat_file", cat_file)
    for _ in range(2):  # the second from the cache
        listing = list_images(find_source(Path("memory://bucket/odd")))
        assert (listing.files, set(listing.others)) == (("photo",), {"rest.bin", "short", "empty"})
    whole = {(name, None, None) for name in ("photo", "rest.bin", "short")} if ranges == "refused" else set()
    assert set(asked) == {(name, 0, 16) for name in ("photo", "rest.bin", "short")} | whole
    assert len(asked) == len(set(asked))
    with open_in(listing.source, "photo") as file:
        assert file.read() == content


def test_an_empty_file_of_unknown_size_on_a_server_is_no_image(root, server):
    (root / "ant" / "empty").write_bytes(b"")
    (root / "ant" / "photo").write_bytes((root / "ant" / "00.jpg").read_bytes())
    listing = list_images(find_source(Path(server.url)))
    assert "ant/photo" in listing.files
    assert "not a JPEG" in listing.others["ant/empty"]


def test_an_address_of_a_local_file_is_its_path(root):
    source = find_source(Path(f"file://{root}"))
    assert (type(source), source.paths) == (ImageFolder, (root,))


@pytest.fixture
def hosts(memory):
    """Addresses of two servers, whose files have equal paths, sizes and times."""
    fsspec = import_or_skip("fsspec")
    memory_file = import_or_skip("fsspec.implementations.memory").MemoryFile

    class Hosted(memory):
        protocol = "hosted"
        store: ClassVar = {}
        pseudo_dirs: ClassVar = [""]

        def __init__(self, host, username=None, password=None):
            super().__init__()
            own = f"/{host}"
            self.store = {path.removeprefix(own): file for path, file in self.store.items() if path.startswith(own)}

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.partition("://")[2].partition("/")[2] if "://" in path else path

        @staticmethod
        def _get_kwargs_from_urls(url):
            user, _, host = url.partition("://")[2].partition("/")[0].rpartition("@")
            name, _, password = user.partition(":")
            return {"host": host, "username": name, "password": password}

        def info(self, path):
            return super().info(path) | {"created": 17}

    fsspec.register_implementation("hosted", Hosted, clobber=True)
    for host in ("one", "two"):
        for suffix in ("jpg", "tar"):
            content = f"{host} {suffix}".encode()
            Hosted.store[f"/{host}/photos/a.{suffix}"] = memory_file(None, f"/photos/a.{suffix}", content)
    return "hosted://me:secret@one/photos", "hosted://two/photos"


def test_two_servers_share_nothing(hosts):
    for url, content in zip(hosts, (b"one jpg", b"two jpg"), strict=True):
        remote = RemoteFiles(url)
        (file,) = remote.named([f"{url}/a.jpg"])
        assert remote.whole(file) == content
    one, two = (f"{url}/a.tar" for url in hosts)
    with pytest.raises(SourceError, match=r"^hosted://me@one and hosted://two differ: name files of one server$"):
        list_images(find_source([Path(one), Path(two)]))
    with pytest.raises(SourceError, match=r"^hosted://me@one/photos/b.tar cannot be read \(there is none\)$"):
        list_images(find_source(Path("hosted://me:secret@one/photos/b.tar")))


@pytest.mark.parametrize(
    ("url", "options", "path", "address"),
    [
        ("ftp://me:pw@h:21/a/b", {"host": "h"}, "/a/c", "ftp://me@h:21/a/c"),
        ("ftp://a/a/b", {"host": "a"}, "/a/c", "ftp://a/a/c"),
        ("s3://bucket/a", {}, "bucket/b", "s3://bucket/b"),
        ("https://h/a", {}, "https://h/b", "https://h/b"),
        ("abfs://box@account/a", {"account_name": "account"}, "box/b/c", "abfs://box@account/b/c"),
    ],
)
def test_an_address_names_the_server_also_where_paths_do_not(url, options, path, address):
    class System:
        _get_kwargs_from_urls = staticmethod(lambda url: options)

    assert Authority.of(System, url).address(path) == address


def test_no_message_or_title_shows_a_password(server):
    address = server.url.replace("://", "://eve:sesame@")
    assert title(find_source(Path(address))) == address.replace(":sesame", "")
    for place in (f"{address}/missing-{{0..1}}.tar", f"{address}/list.txt", f"{address}/no/photos"):
        with pytest.raises(SourceError, match=r"eve@127") as found:
            list_images(find_source(Path(place)))
        assert "sesame" not in str(found.value)


@pytest.mark.parametrize("limit", ["all", "nan", "inf"])
def test_a_limit_of_the_cache_that_is_no_number_is_named(memory, monkeypatch, limit):
    monkeypatch.setenv("BIMKERN_REMOTE_CACHE_GB", limit)
    listing = list_images(find_source(Path("memory://bucket/photos")))
    with pytest.raises(SourceError, match=rf"BIMKERN_REMOTE_CACHE_GB must be a finite number, got '{limit}'"):
        listing.source.open(listing.files[0])


def test_labels_are_class_folders(root, memory):
    source = find_source(Path("memory://bucket/photos"))
    assert read_labels(source, list_images(source).files).classes == ("ant", "bee")


def _in_parts(root, at):
    for part in ("train", "val"):
        shutil.copytree(root, at / part)
    return at


def test_of_train_and_val_at_an_address_the_second_is_held_out(root, memory, tmp_path):
    """They would otherwise be the classes."""
    memory().put(f"{_in_parts(root, tmp_path / 'parts')}/", "/bucket/parts", recursive=True)
    for place in ("memory://bucket/parts", (tmp_path / "parts").as_uri()):
        source = labeled_images(Path(place))
        train, held_out = list_images(source).files, list_images(source.held_out).files
        assert list(train) == list(held_out) == list(list_images(ImageFolder(paths=(root,))).files)
        assert read_labels(source, train).classes == ("ant", "bee")
    for name in ("train.csv", "val.csv"):  # lists at an address are not read
        memory().pipe(f"/bucket/photos/{name}", b"path,label")
    assert labeled_images(Path("memory://bucket/photos")).held_out is None
    with pytest.raises(SourceError, match=r"memory://bucket/none cannot be listed \(there is none\)"):
        labeled_images(Path("memory://bucket/none"))


def test_of_train_and_val_on_a_server_the_second_is_held_out(root, tmp_path):
    import_or_skip("aiohttp")
    with served(_in_parts(root, tmp_path / "parts")) as server:
        source = labeled_images(Path(server.url))
        assert [title(one).rpartition("/")[2] for one in (source, source.held_out)] == ["train", "val"]
        assert read_labels(source, list_images(source).files).classes == ("ant", "bee")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nothing://bucket/x", r"nothing://bucket/x cannot be reached \(Protocol not known: nothing\)"),
        ("memory://bucket/empty", r"memory://bucket/empty cannot be listed \(there is none\)"),
        ("http://127.0.0.1:9/x", r"http://127.0.0.1:9/x cannot be listed \(Cannot connect to host 127.0.0.1:9"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused(memory, address, message):
    with pytest.raises(SourceError, match=message):
        list_images(find_source(Path(address)))


def test_a_folder_that_cannot_be_listed_is_not_left_out(server):
    server.failing += 3 * ["/bee/"]
    with pytest.raises(SourceError, match=r"http://.* cannot be listed \(503"):
        list_images(find_source(Path(server.url)))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(SourceError, match=r"s3://bucket/x: .*[Ii]nstall s3fs"):
        list_images(find_source(Path("s3://bucket/x")))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SourceError, match=r"s3://bucket/x needs fsspec \(.*\); pip install 'bimkern\[remote\]'"):
        list_images(find_source(Path("s3://bucket/x")))


def test_the_cache_stays_within_its_limit_and_notices_damage(tmp_path):
    cache = BoundedCache(tmp_path / "kept", 16_000)
    for i in range(100):
        cache.put(f"{i}", bytes([i]) * 1000)
        assert sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file()) <= 17_016
    assert cache.get("0") is None
    assert cache.get("99") == bytes([99]) * 1000
    cache.put("large", bytes(16_001))
    assert cache.get("large") is None
    for path in (tmp_path / "kept").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    assert cache.get("99") is None


def test_what_was_used_last_stays_in_the_cache(tmp_path):
    cache = BoundedCache(tmp_path, 16_000)
    for i in range(60):
        cache.put(f"{i}", bytes(1000))
        assert cache.get("0") is not None


def test_many_processes_together_stay_near_the_limit_of_the_cache(tmp_path):
    caches = [BoundedCache(tmp_path, 128_000) for _ in range(16)]  # none knows what the others write
    most = 0
    for i in range(640):
        caches[i % 16].put(f"{i}", bytes(400))
        if i % 40 == 39:
            most = max(most, sum(path.stat().st_size for path in tmp_path.glob("??/*")))
    assert 120_000 < most < 1.15 * 128_000


def test_a_cache_that_is_read_only_is_read(tmp_path, monkeypatch):
    BoundedCache(tmp_path, 16_000).put("a", b"content")

    def refused(path):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert BoundedCache(tmp_path, 16_000).get("a") == b"content"
