"""Lists of images: a text file with a path on every line, a table (CSV, TSV), or JSON lines; with labels or without.

Paths are relative to the list. In a text file, a label follows its path after a tab. In the other forms the path is
called `path`, and the label `label`.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self, TextIO

from bimkern import pieces
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.label_text import label_text
from bimkern.data.sources.on_disk import FilesOnDisk
from bimkern.files import jsonl

LISTS = (".txt", ".csv", ".tsv", ".jsonl")
_PATH, _LABEL = "path", "label"


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class ListedImages(FilesOnDisk):
    """The images that a list names, all of which must be there."""

    list: Path
    held_out: Source | None = None

    @classmethod
    def accepts(cls, place: str) -> bool:
        return place.lower().endswith(LISTS)

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        if len(places) > 1:
            raise SourceError(f"--data takes one list, got {', '.join(places)}; join them into one")
        return cls(list=Path(places[0]))

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.list,)

    def files(self) -> dict[str, str | None]:
        """Return the listed paths, each of them taken for an image.

        Raises:
            SourceError: the list cannot be read, names a file twice, or one that is missing.
        """
        return dict.fromkeys(file for _, file, _ in self._entries())

    def path(self, file: str) -> Path:
        return self.list.parent / file

    def labels(self, files: Sequence[str]) -> dict[str, str]:
        """Return the labels of listed paths.

        Raises:
            SourceError: one has none.
        """
        found, wanted = {}, set(files)
        for line, file, label in self._entries():
            if file not in wanted:
                continue
            if label is None:
                raise SourceError(f"{self.list}, line {line}: {file} has no label; every line needs one")
            found[file] = label
        return found

    def _entries(self) -> Iterator[tuple[int, str, str | None]]:
        """Yield line, path and label of every image."""
        seen: dict[str, str] = {}  # by the path in one spelling; links are files of their own, as in folders
        for line, record in _records(self.list):
            if record.get(_PATH) in (None, ""):
                raise SourceError(f"{self.list}, line {line}: {_PATH} is missing; every line needs it")
            file = str(PurePosixPath(str(record[_PATH])))
            if not self.path(file).is_file():
                remedy = f"paths are relative to {self.list.parent}"
                if self.list.suffix == ".txt":
                    remedy += ", and a label follows after a tab"
                raise SourceError(f"{self.list}, line {line}: {file} does not exist; {remedy}")
            other = seen.setdefault(os.path.abspath(self.path(file)), file)
            if other is not file:
                also = "" if other == file else f", also as {other}"
                raise SourceError(f"{self.list}, line {line}: {file} is listed twice{also}; list every image once")
            yield line, file, label_text(record.get(_LABEL))


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the records of a list with the numbers of their lines.

    Raises:
        SourceError: it cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix in (".csv", ".tsv"):
                yield from _rows(path, file, "," if suffix == ".csv" else "\t")
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _record(path, number, line.rstrip("\r\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read ({error})") from error


def _rows(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the rows of a table, whose quotation marks must be in order: an open one would take in all that follows."""
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    line = 0
    try:
        line = reader.line_num if reader.fieldnames else 0
        for record in reader:
            line = reader.line_num
            if any(record.get(None) or ()):  # values beyond the last column
                raise SourceError(
                    f"{path}, line {line}: more values than columns; put what has a {delimiter!r} into quotation marks"
                )
            yield line, record
    except csv.Error as error:
        raise SourceError(
            f"{path}, from line {line + 1} on: {error}; close every quotation mark, and double those inside of a value"
        ) from error


def _record(path: Path, number: int, line: str) -> Mapping[str, object]:
    if path.suffix.lower() == ".txt":
        file, _, label = line.partition("\t")
        return {_PATH: file.strip(), _LABEL: label.strip()}
    record = jsonl.parse(line.encode())
    if record is None:
        raise SourceError(f"{path}, line {number}: expected a JSON object with {_PATH}, and {_LABEL} if it has one")
    return record
