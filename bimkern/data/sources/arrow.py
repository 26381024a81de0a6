"""Tables of Arrow with a column of encoded images: the .arrow files that Hugging Face's save_to_disk writes.

They are mapped into memory: any image is read at the cost of that image.
"""

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePath
from typing import Any

from bimkern import optional
from bimkern.data.formats import BadImage, open_file
from bimkern.data.source import SourceError
from bimkern.data.sources.label_text import label_text
from bimkern.data.sources.mapped import MappedFile

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")  # names of columns, the likeliest first
_LABELS = ("label", "labels", "cls", "class")
_FEATURES = b"huggingface"  # where datasets keeps the names of classes


class Columns:
    """Which columns of a table hold images, their names and their labels."""

    def __init__(self, place: str, key: str | None, schema: Any) -> None:
        """Choose them.

        Args:
            place: path or address of the file, for messages.
            key: the column of images; None: the only one, or one of a usual name.
            schema: of the table, by pyarrow.

        Raises:
            SourceError: there is no such column, or it is not clear which.
        """
        fitting = [field.name for field in schema if _holds_images(field.type)]
        usual = [name for name in _IMAGES if name in fitting]
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        if key is not None and key not in fitting:
            raise SourceError(f"{place} has no column {key!r} of encoded images; it has {columns}")
        if key is None and (not fitting or (len(fitting) > 1 and not usual)):
            what = "several columns that may be images" if fitting else "no column of encoded images"
            raise SourceError(f"{place} has {what}; it has {columns}; name one as {place.rpartition('/')[2]}:COLUMN")
        self.image: str = key or (fitting[0] if len(fitting) == 1 else usual[0])
        kind = schema.field(self.image).type
        self.name = f"{self.image}.path" if _is_struct(kind) and "path" in _field_names(kind) else None
        self.label: str | None = next((name for name in _LABELS if name in schema.names), None)
        features = json.loads((schema.metadata or {}).get(_FEATURES, b"{}"))
        feature = features.get("info", {}).get("features", {}).get(self.label)
        self.classes: Sequence[str] | None = feature.get("names") if isinstance(feature, dict) else None

    def class_of(self, value: Any) -> str | None:
        """Return the name of a label; None where it is missing, for which datasets has -1 beside names of classes."""
        if self.classes and isinstance(value, int):
            return self.classes[value] if value >= 0 else None
        return label_text(value)


class TableRows(ABC):
    """The rows of a table, which is read in pieces."""

    def __init__(self, folder: Path | None, columns: Columns, lengths: Iterable[int]) -> None:
        """Take a file's folder, None at an address, the columns of its table, and the rows of each of its pieces."""
        self._folder = folder
        self._columns, self.key = columns, columns.image
        self._starts = [0, *accumulate(lengths)]
        if columns.label is not None:
            self.label = self._label

    @abstractmethod
    def piece(self, number: int) -> Any:
        """Return the images of a piece, an array of pyarrow."""

    @abstractmethod
    def column(self, name: str) -> Any:
        """Return a whole column, or of `image.path` the field in its struct."""

    def __len__(self) -> int:
        return self._starts[-1]

    def names(self) -> list[str]:
        """Return the paths of the images, none if some are missing."""
        if self._columns.name is None:
            return []
        names = self.column(self._columns.name).to_pylist()
        return names if all(names) else []

    def read(self, i: int) -> bytes:
        piece = bisect_right(self._starts, i) - 1
        return content_of(self.piece(piece), i - self._starts[piece], self._folder)

    def _label(self, i: int) -> str | None:
        return self._columns.class_of(self._labels[i].as_py())

    @cached_property
    def _labels(self) -> Any:
        assert self._columns.label is not None
        return self.column(self._columns.label)


class ArrowRows(TableRows):
    """The rows of an .arrow file, a stream or a file of Arrow."""

    def __init__(self, path: Path, key: str | None) -> None:
        pyarrow: Any = optional.load("pyarrow")
        mapped = pyarrow.memory_map(str(path))
        try:
            self._table = pyarrow.ipc.open_stream(mapped).read_all()
        except pyarrow.ArrowInvalid:
            self._table = pyarrow.ipc.open_file(mapped).read_all()
        columns = Columns(str(path), key, self._table.schema)
        self._images, self._mapped = self._table.column(columns.image).chunks, MappedFile(path)
        super().__init__(path.parent, columns, map(len, self._images))

    def piece(self, number: int) -> Any:
        self._mapped.check()
        return self._images[number]

    def column(self, name: str) -> Any:
        outer, dot, inner = name.rpartition(".")
        return field_of(self._table.column(outer), inner) if dot else self._table.column(name)


def field_of(column: Any, name: str) -> Any:
    """Return a field of a column of structs, null where the struct is, without a copy of the other fields."""
    return column.flatten()[_field_names(column.type).index(name)]


def content_of(column: Any, i: int, folder: Path | None) -> bytes:
    """Return row i of a column of encoded images: its bytes, or else those of the file at its path.

    Raises:
        BadImage, OutOfResources: it has neither, or the file cannot be read.
    """
    is_struct = _is_struct(column.type)
    content = (column.field("bytes") if is_struct else column)[i]
    if content.is_valid:
        return content.as_buffer().to_pybytes()
    path = column.field("path")[i].as_py() if is_struct and "path" in _field_names(column.type) else None
    if path is None:
        raise BadImage("its row is empty")
    if folder is None:
        raise BadImage(f"its row has a path, {path}, and no bytes, which at an address is not followed")
    if ".." in PurePath(path).parts:
        raise BadImage(f"its row has a path with '..', {path}, and no bytes")
    try:
        with open_file(folder / path) as file:
            return file.read()
    except BadImage as error:
        raise BadImage(f"its row has no bytes, and {folder / path}: {error}") from error


def _is_struct(kind: Any) -> bool:
    return kind.num_fields > 0


def _field_names(kind: Any) -> list[str]:
    return [kind.field(i).name for i in range(kind.num_fields)]


def _holds_images(kind: Any) -> bool:
    """Return whether a column holds encoded images: binary, or datasets' struct of bytes and path."""
    if str(kind).startswith("struct"):
        return "bytes" in _field_names(kind)
    return str(kind) in ("binary", "large_binary")
