"""Files that hold many images as rows: arrays, HDF5, LMDB, Parquet, and the Arrow files of Hugging Face's datasets."""

import logging
import os
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

from bimkern import optional, pieces
from bimkern.data.formats import BadImage
from bimkern.data.source import Source, SourceError
from bimkern.data.sources import arrays, arrow, hdf5, lmdb, parquet
from bimkern.data.sources.file_rows import FileRows, errors_of
from bimkern.data.sources.folders import files_alone
from bimkern.data.sources.rows import Joined, RowImages, Rows

__all__ = ["RowFiles"]

logger = logging.getLogger("bimkern.data")

# How a file is opened, given its path and the name of the array or column in it, or None for the only one.
_OPEN: dict[str, Callable[[Path, str | None], Rows]] = {
    ".npy": arrays.NpyRows,
    ".npz": arrays.NpzRows,
    ".h5": hdf5.Hdf5Rows,
    ".hdf5": hdf5.Hdf5Rows,
    ".lmdb": lmdb.LmdbRows,
    ".mdb": lmdb.LmdbRows,
    ".parquet": parquet.ParquetRows,
    ".arrow": arrow.ArrowRows,
}
_NEEDS = {  # package, and extra that installs it
    **dict.fromkeys((".h5", ".hdf5"), ("h5py", "hdf5")),
    **dict.fromkeys((".lmdb", ".mdb"), ("lmdb", "lmdb")),
    **dict.fromkeys((".parquet", ".arrow"), ("pyarrow", "parquet")),
}
_ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
_SPLITS = "dataset_dict.json"  # which names folders of splits, where datasets saved several
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.(?:parquet|arrow)")
_IN_FOLDERS = (".parquet", ".arrow", ".mdb")
_PLACE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, _OPEN))}))(?::([^:]+))?", re.IGNORECASE)


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class RowFiles(RowImages):
    """The images in the rows of files; several files are joined in the order of their names.

    Args:
        paths: the files, or folders of Parquet or Arrow files, or of an LMDB.
        key: the array or column of images; None: the only one.
        held_out: images to evaluate on.
    """

    paths: tuple[Path, ...]
    key: str | None = None

    @property
    def holds_arrays(self) -> bool:
        return all(path.suffix.lower() in _ARRAYS for path in self.paths)

    @classmethod
    def accepts(cls, place: str) -> bool:
        """Return whether a place is such a file, perhaps with `:KEY` behind it, or a folder of some."""
        folder = Path(place)
        return _PLACE.fullmatch(place) is not None or bool(_in_folder(folder)) or _has_splits(folder)

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        parsed = [match.groups() if (match := _PLACE.fullmatch(place)) else (place, None) for place in places]
        if len({key for _, key in parsed}) > 1:
            raise SourceError(f"{', '.join(places)}: all must have the same array or column, named after a colon")
        return cls(paths=tuple(Path(str(path)) for path, _ in parsed), key=parsed[0][1])

    def open_rows(self) -> Rows:
        files = sorted({file for path in self.paths for file in (_in_folder(path) or [path])})
        found = {}
        for file in files:
            with errors_of(str(file)):
                found[file] = _stamp_of(file)
        listed = vars(self).setdefault("_listed", found)  # in the process that a loader's processes are forked from
        if changed := sorted(path for path in found | listed if found.get(path) != listed.get(path)):
            raise BadImage(f"{changed[0]} has changed since it was listed")  # its rows may be others
        return Joined([FileRows(str(file), self._open(file), partial(_stamp_of, file)) for file in files])

    def files(self) -> dict[str, str | None]:
        vars(self).pop("_listed", None)
        for folder in self.paths:
            _look_for_splits(folder)
        return super().files()

    def origin(self, file: str) -> Hashable:
        """Return the file of an image, the array or column in that, and the row."""
        rows: Any = self._rows()
        place, key, row = rows.origin(self._number(file))
        return _resolved(place), key, row

    def _open(self, file: Path) -> Rows:
        suffix = file.suffix.lower()
        try:
            with errors_of(str(file)):
                return _OPEN[suffix](file, self.key)
        except optional.Unusable as error:
            package, extra = _NEEDS[suffix]
            remedy = f"pip install 'bimkern[{extra}]'"
            raise SourceError(f"{file}: {suffix} files need {package} ({error}); {remedy}") from error


def _stamp_of(file: Path) -> tuple[int, int]:
    """Return the bytes and the time of change (ns) of a file."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _resolved(place: str) -> Path:
    return Path(place).resolve()


def _look_for_splits(folder: Path) -> None:
    """Say that a folder of Hugging Face's holds several splits of a data set, which are read as one.

    Raises:
        SourceError: each has a folder of its own.
    """
    if _has_splits(folder):
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise SourceError(
            f"{folder} is a DatasetDict of {', '.join(found) or 'no split'}; name one split, as in --data "
            f"{folder / (found or ['train'])[0]}"
        )
    named = sorted({match[1] for path in _in_folder(folder) if (match := _SPLIT.fullmatch(path.name))})
    if len(named) > 1:
        logger.warning(
            "%s holds the splits %s, and all are read; for one, name its files, as in --data %s/%s-*",
            *(folder, " and ".join(named), folder, named[0]),
        )


def _has_splits(folder: Path) -> bool:
    return os.path.isfile(folder / _SPLITS)  # False also where that cannot be known, of which ImageFolder says why


def _in_folder(folder: Path) -> list[Path]:
    return [path for path in files_alone(folder, _IN_FOLDERS) if path.name != "lock.mdb"]
