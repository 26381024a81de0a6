"""Folders of images."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bimkern import pieces
from bimkern.data.formats import OutOfResources, open_file
from bimkern.data.skipped import is_known, why_skipped
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.on_disk import FilesOnDisk

_OPENERS = 16  # threads


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class ImageFolder(FilesOnDisk):
    """The images below folders, with or without class folders: by suffix or, if unknown, by their first bytes.

    Names are relative to the folder; if there are several, they begin with its name.
    """

    paths: tuple[Path, ...]
    held_out: Source | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise SourceError("ImageFolder: paths must name a folder")
        roots = [Path(os.path.abspath(path)) for path in self.paths]
        for i, one in enumerate(roots):
            for other in (*roots[:i], *roots[i + 1 :]):
                if one.is_relative_to(other):
                    raise SourceError(f"{one} is named twice, or lies inside {other}; name every image once")
                if one.name == other.name:
                    raise SourceError(
                        f"{one} and {other} have the same name, which tells their images apart; rename one"
                    )

    def files(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for path in self.paths:
            prefix = "" if len(self.paths) == 1 else f"{_name(path)}/"
            found |= {prefix + file: reason for file, reason in _files_below(path).items()}
        return found

    def path(self, file: str) -> Path:
        if len(self.paths) == 1:
            return self.paths[0] / file
        name, _, rest = file.partition("/")
        return next(path / rest for path in self.paths if _name(path) == name)


def _name(path: Path) -> str:
    return Path(os.path.abspath(path)).name


def _files_below(root: Path) -> dict[str, str | None]:
    """Return why every file below a folder is skipped, by its relative name; None for an image."""
    found: dict[str, str | None] = {}
    try:
        if not root.is_dir():
            raise SourceError(f"{root} is not a folder")
        paths = {path.relative_to(root).as_posix(): path for path in _walk(root)}
        unknown = [file for file in paths if not is_known(file)]
        found |= {file: why_skipped(file, partial(open_file, paths[file])) for file in paths.keys() - set(unknown)}
        with ThreadPoolExecutor(_OPENERS) as pool:  # opening waits for the disk, or for a network
            reasons = pool.map(lambda file: why_skipped(file, partial(open_file, paths[file])), unknown)
            found |= dict(zip(unknown, reasons, strict=True))
    except OSError as error:
        raise SourceError(f"{error.filename or root} cannot be read ({error.strerror})") from error
    except OutOfResources as error:
        raise SourceError(f"{root} cannot be read ({error})") from error
    return found


def _raise(error: OSError) -> None:
    raise error


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden, through linked folders too, each folder once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Sorted, so that of two links to one folder the same is taken everywhere; hidden folders are not data.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder) / name for name in names if not name.startswith("."))
