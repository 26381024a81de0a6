"""The images of a run: fixed when it starts, the same when it is resumed, and which of them it goes without.

images.jsonl lists what is trained on, with sizes and digests; quarantine.jsonl what cannot be read, and why, and which
other files were skipped, a record for every suffix and reason.
"""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bimkern.data import check
from bimkern.data.check import Found, readable
from bimkern.data.source import Images, Listing, SourceError, refuse_if_empty, suffix_of
from bimkern.files import jsonl
from bimkern.train.config.run import ConfigError

logger = logging.getLogger("bimkern.train")

IMAGES, QUARANTINE = "images.jsonl", "quarantine.jsonl"
_NAMED = 3  # files that a message names


class Quarantine:
    """The files that a run goes without; more than a share of all stop it."""

    def __init__(self, path: Path, root: Path, images: Iterable[str], *, max_ratio: float) -> None:
        """Take up what a file holds, and the images that the run is to train on, by their names below a root."""
        self.path = path
        self.files = {record["file"] for record in jsonl.read(path) if "file" in record}
        self.num_images = len(self.files.union(images))
        self._root = root
        self._max_ratio = max_ratio

    def release(self, files: set[str]) -> None:
        """Let the run have files back."""
        if released := self.files & files:
            logger.warning("%d images that were set aside are as before, and back (%s)", len(released), _some(released))
            self.files -= released
            jsonl.write(self.path, [record for record in jsonl.read(self.path) if record.get("file") not in released])

    def name_others(self, listing: Listing) -> None:
        """Name the non-image files, which are no fault, and only a few of every suffix and reason."""
        alike = defaultdict(list)
        for file, reason in listing.others.items():
            alike[suffix_of(file), reason].append(file)
        others = [
            {"suffix": suffix, "files": len(files), "examples": files[:_NAMED], "reason": reason}
            for (suffix, reason), files in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
        records = jsonl.read(self.path)
        if others != [record for record in records if "suffix" in record]:
            jsonl.write(self.path, [*others, *(record for record in records if "suffix" not in record)])

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
            jsonl.append(self.path, records)
        except OSError as error:
            logger.warning("%s cannot be written (%s)", self.path, error.strerror)
        examples = _some(f"{file}: {reason}" for file, reason in new.items())
        logger.warning("%d of %d images set aside (%s); see %s", len(new), self.num_images, examples, self.path)
        self.stop_if_full()


@dataclass(frozen=True)
class RunImages:
    """What a run trains on, what it is judged and drawn on, and what it goes without."""

    listing: Listing  # without the files that the check found to be no images
    images: Images
    judged: Images
    quarantine: Quarantine
    fingerprint: str  # of names and contents of the images


def settle(folder: Path, listing: Listing, found: dict[str, Found], *, begun: bool, max_bad_ratio: float) -> RunImages:
    """Fix the images of a run, or make sure that one that has begun has the same; those with a fault are set aside.

    The images are judged too, for want of others.

    Raises:
        SourceError: too many of them cannot be read, or there is none.
        ConfigError: they are others than those that the run began with.
    """
    path, quarantined = folder / IMAGES, folder / QUARANTINE
    resumed = begun and path.is_file()
    records = jsonl.read(path) if resumed else []
    recorded = {record["file"] for record in records}
    listing = listing.skip({f: one.fault for f, one in found.items() if one.fault is not None and f not in recorded})
    refuse_if_empty(listing)
    if resumed:
        images = _recorded(listing.root, records, found)
        faulty = [file for file in images.files if file in found and found[file].fault is not None]
    else:
        quarantined.unlink(missing_ok=True)
        images = readable(listing, found)
        faulty = [file for file in listing.files if found[file].fault is not None]
    quarantine = Quarantine(quarantined, listing.root, (*images.files, *faulty), max_ratio=max_bad_ratio)
    if resumed:
        _refuse_changes(listing.root, folder, records, found, quarantine.files)
        quarantine.release(
            {r["file"] for r in records if r["file"] in found and found[r["file"]].digest == r["digest"]}
        )
    quarantine.name_others(listing)
    quarantine.add({listing.root / file: found[file].fault or "" for file in faulty})
    quarantine.stop_if_full()
    if not resumed:
        jsonl.write(path, [_record(file, found[file]) for file in images.files])
    places = {file: i for i, file in enumerate(images.files)}
    images = replace(images, unreadable=frozenset(places[file] for file in quarantine.files & places.keys()))
    return RunImages(listing, images, images, quarantine, hashlib.sha256(path.read_bytes()).hexdigest())


def _record(file: str, found: Found) -> jsonl.Record:
    return {"file": file, "width": found.width, "height": found.height, "digest": found.digest}


def _recorded(root: Path, records: list[jsonl.Record], found: dict[str, Found]) -> Images:
    """Return the images recorded; how they are decoded follows from the content, which is found to be the same."""
    recorded = {r["file"]: Found(width=r["width"], height=r["height"]) for r in records}
    good = {file: found[file] for file in recorded if file in found and found[file].fault is None}
    return check.images(root, recorded | good)


def _refuse_changes(
    root: Path, folder: Path, records: list[jsonl.Record], found: dict[str, Found], set_aside: set[str]
) -> None:
    """Refuse other images than those recorded; what is set aside, or cannot be read now, is not compared."""
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
    """Name the first few, in one line whatever characters a file's name has."""
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in text) for text in texts]
    more = [f"and {len(shown) - _NAMED} more"] if len(shown) > _NAMED else []
    return ", ".join([*shown[:_NAMED], *more])
