"""The manifest of a packed set: from what it was made, and how far that has come."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bimkern.data.formats import BadImage
from bimkern.data.listing import Listing
from bimkern.data.repack import Repacking
from bimkern.data.source import title
from bimkern.errors import BimkernError
from bimkern.files import atomic

MANIFEST = "manifest.json"
_FORMAT = "bimkern.pack 1"
_READERS = 4  # threads that compare digests


def shard_name(number: int) -> str:
    return f"shards-{number:06d}.tar"


class PackError(BimkernError, ValueError):
    """A folder cannot be packed into; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A shard that is whole."""

    name: str
    images: int
    bytes: int
    sha256: str
    left_out: Mapping[str, str]  # files of the source that are no images -> why
    bad: int  # of these, the images that cannot be read


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json holds."""

    options: Mapping[str, Any]
    source: str  # what names it
    fingerprint: str  # SHA-256 of the names, sizes, times and labels of its images
    files: int  # to pack
    shards: Mapping[int, ShardRecord] = field(default_factory=dict)  # by number
    complete: bool = False

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards.values())

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards.values())

    @property
    def bad(self) -> int:
        return sum(shard.bad for shard in self.shards.values())

    @property
    def left_out(self) -> dict[str, str]:
        return {file: reason for shard in self.shards.values() for file, reason in shard.left_out.items()}

    def add(self, number: int, shard: ShardRecord) -> "Manifest":
        return replace(self, shards=dict(sorted({**self.shards, number: shard}.items())))

    def write(self, folder: Path) -> None:
        content = {"format": _FORMAT, **asdict(self), "images": self.images, "bytes": self.bytes}
        content["shards"] = [asdict(shard) for shard in self.shards.values()]
        atomic.write_json(folder / MANIFEST, content)


def begin(folder: Path, listing: Listing, labels: Mapping[str, str] | None, how: Repacking, per_shard: int) -> Manifest:
    """Return the manifest of a folder, a new one if it is empty, with the shards that are still there.

    Raises:
        PackError: the folder holds other things, or was packed from other images or with other options.
    """
    new = Manifest(
        options={**how.options(), "shard_images": per_shard},
        source=title(listing.source),
        fingerprint=_fingerprint(listing, labels),
        files=len(listing),
    )
    found = _read(folder)
    if found is None:
        if foreign := [path.name for path in folder.iterdir() if not path.name.startswith(".")]:
            raise PackError(f"OUT {folder} holds {foreign[0]} and no {MANIFEST}; choose an empty or a new folder")
        return new
    was, now = {**Repacking().options(), **found["options"]}, new.options
    if changes := [f"{name} {was.get(name)}, now {now[name]}" for name in now if was.get(name) != now[name]]:
        raise PackError(f"OUT {folder} was packed with {'; '.join(changes)}; give the same options or another OUT")
    if found["fingerprint"] != new.fingerprint:
        raise PackError(
            f"OUT {folder} was packed from other images: {found['files']} of {found['source']}, now {new.files} of "
            f"{new.source}, by names, sizes, times and labels; choose another OUT"
        )
    records = {one["name"]: ShardRecord(**one) for one in found["shards"]}
    names = map(shard_name, range(-(-new.files // per_shard)))
    shards = {number: records[name] for number, name in enumerate(names) if name in records}
    with ThreadPoolExecutor(_READERS) as pool:
        whole = pool.map(partial(_is_whole, folder), shards.values())
        return replace(new, shards={number: shards[number] for number, kept in zip(shards, whole, strict=True) if kept})


def _is_whole(folder: Path, shard: ShardRecord) -> bool:
    """Return whether a shard is there as it was written, and can be read."""
    path = folder / shard.name
    try:
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except OSError:  # a bad sector, for example
        return False


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise PackError(f"{path} is no JSON ({error}); choose another OUT") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise PackError(f"{path} is not of the format {_FORMAT!r}; choose another OUT")
    return found


def _fingerprint(listing: Listing, labels: Mapping[str, str] | None) -> str:
    digest = hashlib.sha256()
    for file in listing.files:
        try:
            size, time = listing.source.stat(file)
        except (OSError, BadImage):  # it is left out later
            size, time = -1, -1
        label = None if labels is None else labels[file]
        digest.update(json.dumps([file, size, time, label]).encode() + b"\n")
    return digest.hexdigest()
