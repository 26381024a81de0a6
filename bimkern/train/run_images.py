"""The images of a run: fixed when it starts, the same when it is resumed, and which of them it goes without.

images.jsonl lists what is trained on, with sizes and digests; quarantine.jsonl what cannot be read, and why.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bimkern.data.check import Found, readable
from bimkern.data.source import Images, Listing, SourceError
from bimkern.train import durable
from bimkern.train.config import ConfigError

logger = logging.getLogger("bimkern.train")

IMAGES, QUARANTINE = "images.jsonl", "quarantine.jsonl"
_NAMED = 3  # files that a message names


class Quarantine:
    """The files that a run goes without; more than a share of all stop it."""

    def __init__(self, folder: Path, root: Path, *, max_ratio: float) -> None:
        self.path = folder / QUARANTINE
        self._root = root
        self._max_ratio = max_ratio
        self.files = {record["file"] for record in _read(self.path)}
        self.num_images = 0  # that the run has been given, with those in here

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self.files.clear()

    def release(self, files: set[str]) -> None:
        """Let the run have files back."""
        if released := self.files & files:
            logger.warning("%d images can be read again and are trained on (%s)", len(released), _some(released))
            self.files -= released
            _write_whole(self.path, [record for record in _read(self.path) if record["file"] in self.files])

    def stop_if_full(self) -> None:
        """Raise SourceError if more files are in here than a run may go without."""
        if len(self.files) > self._max_ratio * self.num_images:
            raise SourceError(
                f"{len(self.files)} of {self.num_images} images cannot be read, more than --max-bad-ratio "
                f"{self._max_ratio:g}; {self.path} names them"
            )

    def add(self, faults: Mapping[Path, str], steps_done: int | None = None) -> None:
        """Set files aside, with the reason and the steps done by then, None outside of training.

        Raises:
            SourceError: they have become too many.
        """
        named = {os.path.relpath(path, self._root): reason for path, reason in faults.items()}
        new = {file: reason for file, reason in named.items() if file not in self.files}
        if not new:
            return
        self.files |= new.keys()
        records = [{"file": file, "reason": reason, "step": steps_done} for file, reason in new.items()]
        try:
            _append(self.path, records)
        except OSError as error:
            logger.warning("%s cannot be written (%s)", self.path, error.strerror)
        examples = _some(f"{file}: {reason}" for file, reason in new.items())
        logger.warning("%d of %d images set aside (%s); see %s", len(new), self.num_images, examples, self.path)
        self.stop_if_full()


@dataclass(frozen=True)
class RunImages:
    """What a run trains on, what it is judged and drawn on, and what it goes without."""

    images: Images
    judged: Images
    quarantine: Quarantine
    fingerprint: str  # of names and contents of the images


def settle(folder: Path, listing: Listing, found: dict[str, Found], *, max_bad_ratio: float) -> RunImages:
    """Fix the images of a run, or make sure that a resumed one has the same; those with a fault are set aside.

    The images are judged too, for want of others.

    Raises:
        SourceError: too many of them cannot be read.
        ConfigError: they are others than those that the run began with.
    """
    quarantine = Quarantine(folder, listing.root, max_ratio=max_bad_ratio)
    path = folder / IMAGES
    resumed = path.is_file()
    if resumed:
        records = _read(path)
        _refuse_changes(listing.root, folder, records, found, quarantine.files)
        images = _recorded(listing.root, records)
        quarantine.release(
            {r["file"] for r in records if r["file"] in found and found[r["file"]].digest == r["digest"]}
        )
        faulty = [file for file in images.files if file in found and found[file].fault is not None]
        quarantine.num_images = len(quarantine.files.union(images.files))
    else:
        quarantine.clear()  # of a run that ended before it began
        images = readable(listing, found)
        faulty = [file for file in listing.files if found[file].fault is not None]
        quarantine.num_images = len(listing)
    quarantine.add({listing.root / file: found[file].fault or "" for file in faulty})
    quarantine.stop_if_full()
    if not resumed:
        _write_whole(path, [_record(file, found[file]) for file in images.files])
    places = {file: i for i, file in enumerate(images.files)}
    images = replace(images, unreadable=frozenset(places[file] for file in quarantine.files & places.keys()))
    return RunImages(images, images, quarantine, hashlib.sha256(path.read_bytes()).hexdigest())


def _record(file: str, found: Found) -> dict[str, Any]:
    return {"file": file, "width": found.width, "height": found.height, "digest": found.digest}


def _recorded(root: Path, records: list[dict[str, Any]]) -> Images:
    sizes = np.array([(record["width"], record["height"]) for record in records], dtype=np.int64)
    return Images(root, tuple(record["file"] for record in records), sizes)


def _refuse_changes(
    root: Path, folder: Path, records: list[dict[str, Any]], found: dict[str, Found], set_aside: set[str]
) -> None:
    """Refuse other images than those recorded; what is set aside, or cannot be read now, may be as it likes."""
    before = {record["file"]: record["digest"] for record in records if record["file"] not in set_aside}
    now = {file: result for file, result in found.items() if file not in set_aside}
    changes = {
        "gone": [file for file in before if file not in now],
        "with other content": [
            file
            for file, digest in before.items()
            if file in now and now[file].fault is None and now[file].digest != digest
        ],
        "new": [file for file, result in now.items() if file not in before and result.fault is None],
    }
    told = [f"{len(files)} {what} ({_some(files)})" for what, files in changes.items() if files]
    if told:
        raise ConfigError(
            f"--data {root} has changed since the run in {folder} began: {', '.join(told)}; "
            f"put the images back as they were, or choose another --out"
        )


def _some(texts: Iterable[str]) -> str:
    first, *others = list(texts)
    more = len(others) + 1 - _NAMED
    return ", ".join([first, *others[: _NAMED - 1], *([f"and {more} more"] if more > 0 else [])])


def _read(path: Path) -> list[dict[str, Any]]:
    """Read all records; a line torn by a killed process is left out."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    durable.fsync(path)


def _write_whole(path: Path, records: list[dict[str, Any]]) -> None:
    scratch = path.with_name(f".{path.name}")
    scratch.unlink(missing_ok=True)
    _append(scratch, records)
    os.replace(scratch, path)
