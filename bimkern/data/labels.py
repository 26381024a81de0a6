"""Labels: which class every image belongs to, by class folders or by a list of paths and labels.

A folder is read as by torchvision's ImageFolder: the folder right below it names the class. A list is a .csv file with
the columns `path` and `label`, or a .jsonl file of objects with these keys; paths are relative to the list. A folder
that holds `train` and `val`, each a folder of classes or a list, keeps `val` out of training.

Shapes: N images.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from bimkern import pieces
from bimkern.data.augment import Int64
from bimkern.data.formats import open_file
from bimkern.data.source import ImageFolder, Source, SourceError, title
from bimkern.files import jsonl

__all__ = ["Labels", "ListedImages", "label_of_listed", "labeled_images", "read_labels"]

_LISTS = (".csv", ".jsonl")
_COLUMNS = ("path", "label")


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class ListedImages:
    """The images that a .csv or .jsonl list names, all of which must be there."""

    list: Path
    held_out: Source | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.list,)

    def files(self) -> dict[str, str | None]:
        """Return the listed paths, each of them taken for an image.

        Raises:
            SourceError: the list cannot be read, names a file twice, or one that is missing.
        """
        return dict.fromkeys(label_of_listed(self.list))

    def stat(self, file: str) -> tuple[int, int]:
        status = self.path(file).stat()
        return status.st_size, status.st_mtime_ns

    def open(self, file: str) -> BinaryIO:
        return open_file(self.path(file))

    def path(self, file: str) -> Path:
        return self.list.parent / file


@dataclass(frozen=True)
class Labels:
    """The class of every file of a source."""

    classes: tuple[str, ...]  # sorted; a label is the index of one
    by_file: Mapping[str, int]

    def of(self, files: Sequence[str]) -> Int64:
        """Return the labels of files, [N]: of `Images.files`, they are indexed by sample id."""
        return np.array([self.by_file[file] for file in files], dtype=np.int64)


def labeled_images(path: Path) -> Source:
    """Return the source of a folder of classes or of a list; of `train` and `val` in a folder, the second is held out.

    Raises:
        SourceError: it is neither.
    """
    train, val = _part(path, "train"), _part(path, "val")
    if train is None or val is None:
        return _one_source(path, None)
    return _one_source(train, _one_source(val, None))


def read_labels(source: Source, files: Sequence[str], classes: Sequence[str] | None = None) -> Labels:
    """Read the labels of a source that labeled_images returned.

    Args:
        source: of the files.
        files: the images that need a label.
        classes: those of the training images, for images that are held out; None: those that there are.

    Raises:
        SourceError: a file has no label, its label is none of the classes, or there are fewer than two classes.
    """
    names = label_of_listed(source.list) if isinstance(source, ListedImages) else _class_folders(source, files)
    known = sorted({names[file] for file in files}) if classes is None else list(classes)
    if len(known) < 2:
        raise SourceError(f"{title(source)}: labels must name at least two classes, got {', '.join(known) or 'none'}")
    number = {name: i for i, name in enumerate(known)}
    for file in files:
        if names[file] not in number:
            raise SourceError(f"{title(source)}: {file} has label {names[file]!r}, which no training image has")
    return Labels(tuple(known), {file: number[names[file]] for file in files})


def label_of_listed(path: Path) -> dict[str, str]:
    """Return the label of every path of a list, in its order.

    Raises:
        SourceError: the list cannot be read, or a line lacks a column, repeats a path, or names a missing file.
    """
    found: dict[str, str] = {}
    for line, record in _records(path):
        if missing := [column for column in _COLUMNS if record.get(column) in (None, "")]:
            raise SourceError(
                f"{path}, line {line}: {missing[0]} is missing; every line needs {' and '.join(_COLUMNS)}"
            )
        file = str(PurePosixPath(str(record["path"])))
        if file in found:
            raise SourceError(f"{path}, line {line}: {file} is listed twice; list every image once")
        if not (path.parent / file).is_file():
            raise SourceError(f"{path}, line {line}: {file} does not exist; paths are relative to {path.parent}")
        found[file] = str(record["label"])
    return found


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the records of a list with the numbers of their lines."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                yield from ((reader.line_num, record) for record in reader)
            return
        lines = path.read_bytes().splitlines()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = jsonl.parse(line)
            if record is None:
                raise SourceError(f"{path}, line {number}: expected a JSON object with {' and '.join(_COLUMNS)}")
            yield number, record


def _class_folders(source: Source, files: Sequence[str]) -> dict[str, str]:
    if bare := [file for file in files if "/" not in file]:
        raise SourceError(f"{title(source)}: {bare[0]} lies in no class folder; put it into one, or give a .csv list")
    return {file: file.partition("/")[0] for file in files}


def _part(path: Path, name: str) -> Path | None:
    """Return the folder or list of a part of a data set, None where there is none."""
    return next((part for part in (path / name, *(path / f"{name}{s}" for s in _LISTS)) if part.exists()), None)


def _one_source(path: Path, held_out: Source | None) -> Source:
    if path.is_dir():
        return ImageFolder(paths=(path,), held_out=held_out)
    if path.suffix.lower() not in _LISTS:
        raise SourceError(f"{path} must be a folder of class folders, or a {' or '.join(_LISTS)} list")
    return ListedImages(list=path, held_out=held_out)
