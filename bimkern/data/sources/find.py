"""Which source --data names, by what it is: a class that says so of itself, else a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bimkern import pieces
from bimkern.data.addresses import text_of
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.sources.listed import ListedImages
from bimkern.data.sources.own import OwnImages
from bimkern.data.sources.remote import RemoteImages
from bimkern.data.sources.remote_shards import RemoteShards
from bimkern.data.sources.remote_tables import RemoteTables
from bimkern.data.sources.row_files import RowFiles
from bimkern.data.sources.shards import ImageShards

__all__ = ["find_source", "place_of"]

_OURS = (RemoteShards, RemoteTables, RemoteImages, RowFiles, OwnImages, ListedImages, ImageShards)  # in this order


def find_source(data: Path | Sequence[Path]) -> Source:
    """Return the source that --data names. What it holds is read later, by files().

    A registered source class with `accepts(place)` and `of(places)` is asked first.

    Args:
        data: one place or several of one kind.

    Raises:
        SourceError: they are of several kinds, or the source cannot be used.
    """
    places = list(map(place_of, (data,) if isinstance(data, Path) else data))
    kinds = {place: _kind_of(place) for place in places}
    if len(set(kinds.values())) > 1:
        read = " and ".join(f"{place} (read by {kind.__name__})" for place, kind in kinds.items())
        raise SourceError(f"--data must name images of one kind, got {read}")
    kind = next(iter(kinds.values()))
    return ImageFolder(paths=tuple(map(Path, places))) if kind is ImageFolder else kind.of(places)


def place_of(path: Path) -> str:
    """Return a path as it was given, on disk or at an address; what file:// names is on disk."""
    return text_of(path).removeprefix("file:/")


def _kind_of(place: str) -> Any:
    own = [kind for kind in pieces.registered(Source).values() if hasattr(kind, "accepts") and kind not in _OURS]
    kinds: tuple[Any, ...] = (*own, *_OURS)
    return next((kind for kind in kinds if kind.accepts(place)), ImageFolder)
