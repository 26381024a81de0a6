"""Arrays and tables of images give what a folder of their files gives."""

import json
import os
import re
import resource
import sys

import numpy as np
import pytest
from bad_files import encoded, picture
from interop import import_or_skip
from row_forms import LEVELS, NEEDS, named, pixels, write, write_pngs, write_table
from source_forms import batches_of, data_of, files_of, same, write_folder

from bimkern.data.batches import BadImages
from bimkern.data.check import check
from bimkern.data.formats import BadImage, OutOfResources
from bimkern.data.labels import labeled_images, read_labels
from bimkern.data.listing import list_images
from bimkern.data.pil import PilLoader
from bimkern.data.source import SourceError, open_in
from bimkern.data.sources import arrow, parquet
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.sources.per_process import PerProcess

KINDS = (".npy", ".npz", "compressed.npz", ".h5", ".lmdb", "folder.lmdb", ".parquet", "paths.parquet", ".arrow")


@pytest.fixture
def root(tmp_path):
    return write_pngs(tmp_path / "photos")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_folder_bit_for_bit_also_when_resumed(root, tmp_path, kind, workers):
    path = write(root, named(tmp_path, kind))
    loader = PilLoader(workers=workers)
    theirs = batches_of(loader, data_of(ImageFolder(paths=(root,))))
    data = data_of(find_source(path))
    assert same(batches_of(loader, data), theirs)
    assert same(batches_of(loader, data_of(find_source(path)), first=5), theirs[5:])


@pytest.mark.parametrize("kind", ["paths.parquet", ".lmdb"])
def test_where_rows_have_names_these_give_the_order(root, tmp_path, kind):
    path = write(root, named(tmp_path, kind), order=[7, 3, 11, 0, 1, 2, 10, 9, 8, 6, 5, 4])
    loader = PilLoader(workers=0)
    theirs = data_of(ImageFolder(paths=(root,)))
    ours = data_of(find_source(path))
    assert ours.images.files == theirs.images.files
    assert same(batches_of(loader, ours), batches_of(loader, theirs))


@pytest.mark.parametrize("kind", [".npz", ".h5", ".parquet", ".arrow"])
def test_labels(root, tmp_path, kind):
    source = find_source(write(root, named(tmp_path, kind)))
    labels = read_labels(source, list_images(source).files)
    assert labels.classes == (("ant", "bee") if kind in (".parquet", ".arrow") else ("0", "1"))
    assert labels.numbers.tolist() == [i % 2 for i in range(LEVELS)]


@pytest.mark.parametrize("names", [("x", "y"), ("X_val", "y_val"), ("images", "labels"), ("photos", "labels")])
def test_an_array_in_a_group_is_named_with_it_and_has_the_labels_there(tmp_path, names):
    h5py = import_or_skip("h5py")
    images, labels = names
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for group in ("train", "test"):
            file[f"{group}/{images}"] = np.zeros((2, 8, 8, 3), np.uint8)
            file[f"{group}/{labels}"] = [f"{group} 0", f"{group} 1"]
    with pytest.raises(SourceError, match=r"several arrays that may be images; .*; name one as x.h5:NAME"):
        list_images(find_source(tmp_path / "x.h5"))
    source = find_source(tmp_path / f"x.h5:train/{images}")
    assert read_labels(source, list_images(source).files).classes == ("train 0", "train 1")


def test_what_has_no_labels_says_so(root, tmp_path):
    source = find_source(write(root, tmp_path / "x.npy"))
    with pytest.raises(SourceError, match=r"x.npy has no labels"):
        read_labels(source, list_images(source).files)


@pytest.mark.parametrize("missing", [None, -1])
def test_a_missing_label_of_a_table_is_no_class(root, tmp_path, missing):
    """`datasets` has -1 for it, beside the names of classes."""
    pa, pq = import_or_skip("pyarrow"), import_or_skip("pyarrow.parquet")
    table = {"image": [path.read_bytes() for path in files_of(root)][:3], "label": pa.array([0, missing, 1])}
    names = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    table = pa.table(table).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, tmp_path / "x.parquet")
    source = find_source(tmp_path / "x.parquet")
    files = list_images(source).files
    with pytest.raises(SourceError, match=r"x.parquet: 000000001, row 1, has no label; every image needs one"):
        read_labels(source, files)
    assert source.labels([files[0], files[2]]) == {files[0]: "ant", files[2]: "bee"}


def test_a_missing_label_of_an_array_is_no_class(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.array([0, np.nan, 1]))
    source = find_source(tmp_path / "x.npz")
    with pytest.raises(SourceError, match=r"x.npz: 000000001, row 1, has no label; every image needs one"):
        read_labels(source, list_images(source).files)


@pytest.mark.parametrize("labels", [np.arange(2), np.array(7), np.eye(3)])
def test_labels_that_are_not_one_for_each_image_are_named_where_labels_are_needed(tmp_path, labels):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=labels)
    source = find_source(tmp_path / "x.npz")
    files = list_images(source).files
    wrong = re.escape(f"x.npz: labels must be one for each image, got {list(labels.shape)} for 3 images")
    with pytest.raises(SourceError, match=wrong):
        read_labels(source, files)


def test_what_datasets_write_is_read(root, tmp_path):
    """save_to_disk, and Parquet files, which then hold paths and no bytes; a folder of them, and each by its name."""
    datasets = import_or_skip("datasets")
    rows = {"image": [str(path) for path in files_of(root)], "label": [i % 2 for i in range(LEVELS)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    images = datasets.Dataset.from_dict(rows, features)
    images.save_to_disk(tmp_path / "disk", num_shards=2)
    (tmp_path / "tables").mkdir()
    for i in range(2):
        images.shard(2, i, contiguous=True).to_parquet(tmp_path / "tables" / f"train-{i:05d}-of-00002.parquet")
    loader = PilLoader(workers=0)
    theirs = batches_of(loader, data_of(ImageFolder(paths=(root,))))
    for place in (tmp_path / "disk", tmp_path / "tables", sorted((tmp_path / "tables").iterdir())):
        source = find_source(place)
        assert same(batches_of(loader, data_of(source)), theirs)
        assert read_labels(source, list_images(source).files).classes == ("ant", "bee")


def test_several_files_are_joined(root, tmp_path):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", np.stack([pixels(6 * i + j) for j in range(6)]))
    loader = PilLoader(workers=0)
    ours = batches_of(loader, data_of(find_source([tmp_path / "1.npy", tmp_path / "0.npy"])))
    assert same(ours, batches_of(loader, data_of(ImageFolder(paths=(root,)))))


def test_gray_arrays_without_channels_and_named_ones(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (4, 9, 8), np.uint8)
    np.savez(tmp_path / "x.npz", one=levels, two=levels[:2])
    with pytest.raises(SourceError, match=r"several arrays that may be images; it has one uint8 \[4, 9, 8\], t"):
        list_images(find_source(tmp_path / "x.npz"))
    source = find_source(tmp_path / "x.npz:two")
    assert list_images(source).files == ("000000000", "000000001")
    (batch, *_) = batches_of(PilLoader(workers=0), data_of(source))
    assert batch.images.shape == (5, 3, 16, 16)
    assert (batch.images[:, 0] == batch.images[:, 2]).all()


def arrays(**values):
    return lambda path: np.savez(path, **values)


@pytest.mark.parametrize(
    ("place", "write", "message"),
    [
        (
            "x.npy",
            lambda path: np.save(path, np.zeros((3, 4, 4, 3))),
            r"x.npy: 64 bits per channel \(float64\); state their range, as in --range 0 4095",
        ),
        ("x.npy:a", lambda path: np.save(path, np.zeros(3)), "holds one array, which has no name; leave out :a"),
        ("x.npz", arrays(a=np.zeros(3)), r"no array of images, \[N, H, W, C\]; it has a float64 \[3\]; name one"),
        (
            "x.npy",
            lambda path: np.save(path, np.zeros((3, 4))),
            r"must be numbers \[N, H, W, C\], got float64 \[3, 4\]",
        ),
        ("x.npz:b", arrays(a=np.zeros(3)), r"x.npz has no array 'b'; it has a float64 \[3\]"),
        ("x.npy", lambda path: path.write_bytes(b"no array"), r"x.npy cannot be read \("),
        ("y.npy", lambda path: None, r"y.npy cannot be read \(No such file or directory\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, place, write, message):
    write(tmp_path / place.partition(":")[0])
    with pytest.raises(SourceError, match=message):
        list_images(find_source(tmp_path / place))


def test_tables_without_images_are_refused_and_rows_without_bytes_are_bad(root, tmp_path):
    pa, pq = import_or_skip("pyarrow"), import_or_skip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x.parquet has no column of encoded images; it has text \(string\), n"):
        list_images(find_source(tmp_path / "x.parquet"))
    binary = pa.array([encoded("PNG"), None], pa.binary())
    pq.write_table(pa.table({"a": binary, "b": binary}), tmp_path / "y.parquet")
    with pytest.raises(SourceError, match=r"several columns that may be images; .*; name one as y.parquet:COLUMN"):
        list_images(find_source(tmp_path / "y.parquet"))
    listing = list_images(find_source(tmp_path / "y.parquet:b"))
    faults = [one.fault for one in check(listing, workers=0).values()]
    assert faults == [None, "its row is empty"]
    with pytest.raises(SourceError, match=r"y.parquet has no column 'c' of encoded images"):
        list_images(find_source(tmp_path / "y.parquet:c"))


@pytest.mark.parametrize("kind", [".arrow", ".parquet"])
def test_paths_of_images_are_read_without_a_copy_of_the_images(tmp_path, kind):
    pa, size = import_or_skip("pyarrow"), 200_000
    names = [f"{i:02d}.png" for i in range(LEVELS)]
    write_table(tmp_path / f"paths{kind}", names, [bytes(size)] * LEVELS, [0] * LEVELS)
    rows = find_source(tmp_path / f"paths{kind}").open_rows()
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        assert rows.names() == names
        assert pool.max_memory() < size
    finally:
        pa.set_memory_pool(usual)


def test_a_field_of_structs_is_null_where_they_are_and_begins_where_their_slice_does():
    pa = import_or_skip("pyarrow")
    paths = pa.array(["a", "b", "c", "d"])
    structs = pa.StructArray.from_arrays([paths], ["path"], mask=pa.array([False, False, True, False]))
    column = pa.chunked_array([structs.slice(1), structs.slice(0, 1)])
    assert arrow.field_of(column, "path").to_pylist() == ["b", None, "d", "a"]


def test_paths_that_are_no_text_are_an_error_that_names_the_file(tmp_path):
    pa = import_or_skip("pyarrow")
    paths = pa.array([b"\xff.png"]).view(pa.string())
    table = pa.table({"image": pa.StructArray.from_arrays([pa.array([encoded("PNG")]), paths], ["bytes", "path"])})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(SourceError, match=r"x.arrow cannot be read \(.*0xff"):
        list_images(find_source(tmp_path / "x.arrow"))


@pytest.mark.parametrize("kind", [".npy", ".npz", ".arrow", ".parquet", ".lmdb"])
def test_a_file_that_is_truncated_while_it_is_read_is_a_fault_of_its_images(root, tmp_path, kind):
    """It is mapped into memory: to read behind its end would end the process."""
    path = write(root, named(tmp_path, kind))
    source = find_source(path)
    first, *_, last = source.files()
    with open_in(source, first) as opened:
        assert opened.read()
    size = path.stat().st_size
    os.truncate(path, 100)
    with pytest.raises(BadImage, match=rf"{path.name} was truncated from {size} to 100 bytes since it was opened"):
        open_in(source, last)


def test_a_mapped_file_that_another_takes_the_place_of_is_read_on(root, tmp_path):
    path = write(root, named(tmp_path, ".npy"))
    source = find_source(path)
    first, *_, last = source.files()
    with open_in(source, first) as opened:
        assert opened.read()
    (tmp_path / "other").write_bytes(b"short")
    (tmp_path / "other").rename(path)
    with open_in(source, last) as opened:
        assert opened.read()
    path.unlink()
    with open_in(source, first) as opened:
        assert opened.read()


def handles_of(path):
    open_files = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(file) == str(path) for file in open_files)


@pytest.mark.parametrize("kind", [".npy", ".arrow", ".parquet"])
def test_an_opened_file_takes_at_most_one_handle_and_without_any_no_image_is_blamed(root, tmp_path, kind):
    path = write(root, named(tmp_path, kind))
    source, limits = find_source(path), resource.getrlimit(resource.RLIMIT_NOFILE)
    first, *_ = source.files()
    assert handles_of(path) <= 1
    vars(source).pop("_rows")  # as in a process that opens them for itself
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OutOfResources, match=rf"no file can be read: .*{path.name} cannot be read \("):
            open_in(source, first)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_row_without_bytes_is_the_file_at_its_path_unless_that_leaves_the_folder(tmp_path):
    (tmp_path / "set").mkdir()
    picture(30, 24).save(tmp_path / "set" / "a.png")
    picture(30, 24).save(tmp_path / "b.png")
    paths = ["a.png", str(tmp_path / "b.png"), "../b.png", "c.png"]
    write_table(tmp_path / "set" / "paths.arrow", paths, [None] * 4, [0] * 4)
    found = check(list_images(find_source(tmp_path / "set" / "paths.arrow")), workers=0)
    assert {name: one.fault for name, one in found.items()} == {
        "a.png": None,
        str(tmp_path / "b.png"): None,
        "../b.png": "its row has a path with '..', ../b.png, and no bytes",
        "c.png": f"its row has no bytes, and {tmp_path / 'set' / 'c.png'}: No such file or directory",
    }


def test_splits_in_one_folder_are_read_together_which_is_said(root, tmp_path, caplog):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        write(root, tmp_path / "x.parquet").rename(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert len(list_images(find_source(tmp_path / "data"))) == 2 * LEVELS
    folder = tmp_path / "data"
    line = f"{folder} holds the splits test and train, and all are read; for one, name its files, as in --data"
    assert f"{line} {folder}/test-*" in caplog.text
    caplog.clear()
    list_images(find_source(folder / "train-00000-of-00001.parquet"))
    assert not caplog.text


def test_a_dataset_dict_is_named_with_its_splits(root, tmp_path):
    datasets = import_or_skip("datasets")
    rows = {"image": [str(path) for path in files_of(root)]}
    one = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image()}))
    datasets.DatasetDict(train=one, validation=one).save_to_disk(tmp_path / "disk")
    line = rf"disk is a DatasetDict of train, validation; name one split, as in --data {tmp_path}/disk/train"
    with pytest.raises(SourceError, match=line):
        list_images(find_source(tmp_path / "disk"))
    assert len(list_images(find_source(tmp_path / "disk" / "train"))) == LEVELS
    assert len(list_images(labeled_images(tmp_path / "disk").held_out)) == LEVELS


def test_of_parquet_a_bounded_share_is_kept(root, tmp_path, monkeypatch):
    path = write(root, tmp_path / "x.parquet")
    monkeypatch.setattr(parquet, "_CACHED_BYTES", 1)
    rows = find_source(path).open_rows()
    for i in (0, 11, 5, 0):
        assert rows.read(i) == (root / f"{i:02d}.png").read_bytes()


def test_of_several_parquet_files_a_bounded_share_is_kept_in_all(tmp_path, monkeypatch):
    pa, pq = import_or_skip("pyarrow"), import_or_skip("pyarrow.parquet")
    size, files = 100_000, range(6)
    for i in files:
        table = pa.table({"image": [bytes([10 * i + j]) * size for j in range(3)]})
        pq.write_table(table, tmp_path / f"{i}.parquet", row_group_size=1)
    monkeypatch.setattr(parquet, "_CACHED_BYTES", 3 * size)
    monkeypatch.setattr(parquet, "_groups", PerProcess(parquet._Groups))
    rows = find_source([tmp_path / f"{i}.parquet" for i in files]).open_rows()
    before = pa.total_allocated_bytes()
    for row in (*range(18), 17, 3, 17):
        assert rows.read(row) == bytes([10 * (row // 3) + row % 3]) * size
        assert pa.total_allocated_bytes() - before < 4 * size


@pytest.mark.parametrize("kind", [".h5", ".lmdb", ".parquet", ".arrow"])
def test_without_its_package_a_file_is_refused_with_the_remedy(tmp_path, monkeypatch, kind):
    package = NEEDS[kind].partition(".")[0]
    for name in (package, NEEDS[kind]):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / f"x{kind}").write_bytes(b"")
    extra = {"h5py": "hdf5", "lmdb": "lmdb", "pyarrow": "parquet"}[package]
    with pytest.raises(SourceError, match=rf"{kind} files need {package} \(.*\); pip install 'bimkern\[{extra}\]'"):
        list_images(find_source(tmp_path / f"x{kind}"))


def test_a_file_that_changes_is_checked_again(root, tmp_path):
    write(root, tmp_path / "x.npy")
    source = find_source(tmp_path / "x.npy")
    before = check(list_images(source), workers=0)
    np.save(tmp_path / "x.npy", np.stack([pixels(i + 1) for i in range(LEVELS)]))
    after = check(list_images(source), workers=0)
    assert before.keys() == after.keys()
    assert all(before[file].digest != after[file].digest for file in before)


@pytest.mark.parametrize("what", ["rewritten", "joined by another"])
def test_a_file_that_changed_when_a_process_opens_it_again_is_a_fault_of_its_images(root, tmp_path, what):
    """Its rows may be others than those that were listed."""
    (tmp_path / "tables").mkdir()
    path = write(root, tmp_path / "tables" / "x.parquet")
    data = data_of(find_source(path.parent), batch_size=LEVELS)
    changed = path if what == "rewritten" else path.with_name("a.parquet")
    write(root, tmp_path / "new.parquet", order=range(LEVELS)[::-1]).replace(changed)
    with pytest.raises(BadImages) as raised:
        list(PilLoader(workers=1).batches(data, 0, 1))
    assert set(raised.value.faults.values()) == {f"{changed} has changed since it was listed"}
    assert len(raised.value.faults) == LEVELS


def test_a_folder_of_images_with_a_table_or_a_shard_beside_them_is_a_folder_of_images(tmp_path):
    root = write_folder(tmp_path / "photos")
    (root / "metadata.parquet").write_bytes(b"")
    (root / "download.tar").write_bytes(b"")
    assert isinstance(find_source(root), ImageFolder)
