"""Lists of images, in every form, with labels and without."""

import json

import pytest
from checked import labels_by_file
from source_forms import batches_of, data_of, files_of, same, write_folder

from bimkern.data.labels import labeled_images, read_labels
from bimkern.data.listing import list_images
from bimkern.data.pil import PilLoader
from bimkern.data.source import SourceError
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.sources.listed import ListedImages


@pytest.fixture
def root(tmp_path):
    root = write_folder(tmp_path / "photos")
    (root / "ant" / "note.txt").unlink()
    return root


def write_list(root, name, *, labels=False):
    """List the images of a folder beside them, from the last to the first."""
    rows = [(path.relative_to(root).as_posix(), path.parent.name) for path in reversed(files_of(root))]
    path = root / name
    if path.suffix == ".jsonl":
        keys = ("path", "label") if labels else ("path",)
        lines = [json.dumps(dict(zip(keys, row, strict=False))) for row in rows]
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        head = [] if path.suffix == ".txt" else [mark.join(["path", "label"] if labels else ["path"])]
        lines = [*head, *(mark.join(row if labels else row[:1]) for row in rows)]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8-sig" if path.suffix != ".jsonl" else None)
    return path


@pytest.mark.parametrize("name", ["all.txt", "all.csv", "all.tsv", "all.jsonl"])
def test_a_list_gives_what_its_folder_gives_also_when_resumed(root, name):
    loader = PilLoader(workers=0)
    theirs = batches_of(loader, data_of(ImageFolder(paths=(root,))))
    path = write_list(root, name)
    assert isinstance(find_source(path), ListedImages)
    assert same(batches_of(loader, data_of(find_source(path))), theirs)
    assert same(batches_of(loader, data_of(find_source(path)), first=3), theirs[3:])


@pytest.mark.parametrize("name", ["all.txt", "all.csv", "all.tsv", "all.jsonl"])
def test_labels_of_a_list_are_those_of_class_folders(root, name):
    folders = ImageFolder(paths=(root,))
    theirs = read_labels(folders, list_images(folders).files)
    source = labeled_images(write_list(root, name, labels=True))
    assert labels_by_file(read_labels(source, list_images(source).files)) == labels_by_file(theirs)


def test_what_is_wrong_with_a_list_is_named_with_its_line(root):
    path = write_list(root, "all.txt")
    with pytest.raises(SourceError, match=r"all.txt, line 1: bee/11.webp has no label; every line needs one"):
        find_source(path).labels(["bee/11.webp"])
    path.write_text("ant/00.jpg 3\n")
    with pytest.raises(SourceError, match=r"line 1: ant/00.jpg 3 does not exist; .*, and a label follows after a tab"):
        list_images(find_source(path))
    with pytest.raises(SourceError, match=r"--data takes one list, got .*all.txt, .*all.csv; join them into one"):
        find_source([path, root / "all.csv"])
    (root / "other.csv").write_text("file\na\n")
    with pytest.raises(SourceError, match=r"other.csv, line 2: path is missing; every line needs it"):
        list_images(find_source(root / "other.csv"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_no_row_of_a_table_is_lost_in_another(root, suffix):
    """An open quotation mark takes in all that follows, and what lies beyond the last column would be cut off."""
    mark = "," if suffix == ".csv" else "\t"
    files = [path.relative_to(root).as_posix() for path in files_of(root)][:3]
    path = root / f"all{suffix}"

    def write(*labels):
        path.write_text("\n".join([mark.join(("path", "label")), *map(mark.join, zip(files, labels, strict=True)), ""]))
        return find_source(path)

    with pytest.raises(SourceError, match=rf"all{suffix}, from line 3 on: unexpected end of data; close every quotat"):
        list_images(write("a", '"b', "c"))
    with pytest.raises(SourceError, match=rf"all{suffix}, from line 2 on: .* expected after .*; close every quotation"):
        list_images(write('"a" b', "b", "c"))
    with pytest.raises(SourceError, match=rf"all{suffix}, line 3: more values than columns; put what has a .* into q"):
        list_images(write("a", f"b{mark}c", "c"))
    source = write(f'"a{mark} ""b"""', f"5 inch{mark}{mark}", '5" pipe')
    assert source.labels(files) == dict(zip(files, [f'a{mark} "b"', "5 inch", '5" pipe'], strict=True))


@pytest.mark.parametrize("text", [",path,label\n0,ant/00.jpg,ant\n", "path,label,\nant/00.jpg,ant\n"])
def test_a_column_may_have_no_name(root, text):
    """As that of the index which pandas writes."""
    path = root / "all.csv"
    path.write_text(text)
    assert find_source(path).labels(["ant/00.jpg"]) == {"ant/00.jpg": "ant"}


def test_a_label_that_is_no_number_is_missing(root):
    path = root / "all.jsonl"
    path.write_text('{"path": "ant/00.jpg", "label": NaN}\n')
    with pytest.raises(SourceError, match=r"all.jsonl, line 1: ant/00.jpg has no label; every line needs one"):
        find_source(path).labels(["ant/00.jpg"])
