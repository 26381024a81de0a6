"""Folders that hold images in files of another kind: shards, tables."""

import os
from collections.abc import Collection
from pathlib import Path

from bimkern.data.formats import SUFFIXES


def files_alone(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of some suffixes right in a folder, sorted; none if it has folders or images, as those count."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
            if any(entry.is_dir() or _suffix(entry.name) in SUFFIXES for entry in found):
                return []
    except OSError:
        return []
    return sorted(folder / entry.name for entry in found if _suffix(entry.name) in suffixes)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
