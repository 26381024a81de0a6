"""The dataset of a run: frozen when it starts, verified when it resumes, less the images in quarantine.

images.jsonl lists the images trained on and those held out, with sizes and digests. quarantine.jsonl lists images that
cannot be read and why, and the non-image files that were skipped, one record per suffix and reason.
"""

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bimkern.abridged import SHOWN, some
from bimkern.data import check
from bimkern.data.check import readable
from bimkern.data.file_checks import FileChecks
from bimkern.data.held_out import are_held_out
from bimkern.data.images import Images
from bimkern.data.listing import Listing, refuse_if_empty
from bimkern.data.names import Names
from bimkern.data.overlap import refuse_overlap
from bimkern.data.source import Source, SourceError, title
from bimkern.files import jsonl
from bimkern.train.config.run import ConfigError
from bimkern.train.run_folder.image_records import IMAGES, read_records, write_records

logger = logging.getLogger("bimkern.train")

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """The images that a run does without; too large a share of all stops it."""

    def __init__(self, path: Path, images: Names, faulty: Iterable[str] = (), *, max_ratio: float) -> None:
        """Read a quarantine file.

        Args:
            path: of the file; it need not exist.
            images: names of the images of the run.
            faulty: names of images that may not be among them.
            max_ratio: share of all that may be in quarantine.
        """
        self.path = path
        self.files = {record["file"] for record in jsonl.read(path) if "file" in record}
        self.num_images = len(images) + sum(images.index_of(file) is None for file in self.files.union(faulty))
        self._max_ratio = max_ratio

    def release(self, files: set[str]) -> None:
        """Remove files from the quarantine."""
        if released := self.files & files:
            logger.warning(
                "%d images released from quarantine: they are as recorded again (%s)", len(released), some(released)
            )
            self.files -= released
            jsonl.write(self.path, [record for record in jsonl.read(self.path) if record.get("file") not in released])

    def record_others(self, listing: Listing) -> None:
        """Record the non-image files, a few examples of every suffix and reason, and each damaged part of a shard.

        They do not count as faults.
        """
        alike = sorted(listing.other_files().alike().items(), key=lambda item: (-len(item[1]), item[0]))
        others: list[dict[str, Any]] = [
            {"suffix": suffix, "files": len(files), "examples": list(files[:SHOWN]), "reason": reason}
            for (suffix, reason), files in alike
        ]
        others += [{"part": part, "reason": reason} for part, reason in listing.damaged().items()]
        records = jsonl.read(self.path)
        rest = [record for record in records if not record.keys() & {"suffix", "part"}]
        if others != [record for record in records if record.keys() & {"suffix", "part"}]:
            jsonl.write(self.path, [*others, *rest])

    def stop_if_full(self) -> None:
        """Raise SourceError if more files are in quarantine than the run may do without."""
        if len(self.files) > self._max_ratio * self.num_images:
            raise SourceError(
                f"{len(self.files)} of {self.num_images} images cannot be read, more than --max-bad-ratio "
                f"{self._max_ratio:g}; {self.path} names them"
            )

    def add(self, faults: Mapping[str, str], steps_done: int | None = None) -> None:
        """Quarantine files.

        Args:
            faults: the reason for each file.
            steps_done: optimizer steps done, None outside of training.

        Raises:
            SourceError: too many files are in quarantine.
        """
        new = {file: reason for file, reason in faults.items() if file not in self.files}
        if not new:
            return
        self.files |= new.keys()
        records = [{"file": file, "reason": reason, "step": steps_done} for file, reason in new.items()]
        try:
            jsonl.append(self.path, records)
        except OSError as error:
            logger.warning("%s cannot be written (%s)", self.path, error.strerror)
        examples = some(f"{file}: {reason}" for file, reason in new.items())
        logger.warning("%d of %d images quarantined (%s); see %s", len(new), self.num_images, examples, self.path)
        self.stop_if_full()


@dataclass(frozen=True)
class FrozenDataset:
    """The images to train on, the images held out for evaluation, and the quarantine."""

    listing: Listing  # less the files that the check found not to be images
    images: Images
    held_out: Images
    quarantine: Quarantine
    fingerprint: str  # SHA-256 of the names and digests of the images

    @property
    def holds_out(self) -> bool:
        """Whether the images to evaluate on are others than those to train on."""
        return self.held_out is not self.images

    @property
    def parts(self) -> list[Images]:
        """All images, each once."""
        return [self.images, self.held_out] if self.holds_out else [self.images]

    def hold_out(self, listing: Listing, found: FileChecks) -> "FrozenDataset":
        """Return the dataset with other images to evaluate on, all of which must be readable.

        Raises:
            SourceError: some are not, or are trained on, or there is none.
        """
        faults = found.faults
        listing = listing.skip(faults)
        refuse_if_empty(listing)
        _refuse_held_out(listing.source, {file: faults[file] for file in _within(listing.files, faults)})
        images = readable(listing, found)
        refuse_overlap(self.images, images)
        return replace(self, held_out=images)

    def add_held_out_faults(self, faults: Mapping[str, str], steps_done: int | None = None) -> None:
        """Quarantine images that are trained on, too, and refuse others: they must be the same in every evaluation."""
        if self.held_out.source == self.images.source:
            self.quarantine.add(faults, steps_done)
        else:
            _refuse_held_out(self.held_out.source, faults)

    def without_quarantined(self) -> "FrozenDataset":
        """Return the dataset whose draws avoid what is in quarantine by now."""
        images = self._marked(self.images)
        return replace(self, images=images, held_out=self._marked(self.held_out) if self.holds_out else images)

    def _marked(self, images: Images) -> Images:
        if images.source != self.images.source:  # not what the quarantine names
            return images
        return replace(images, unreadable=frozenset(_within(images.files, self.quarantine.files).values()))


def freeze_dataset(
    folder: Path,
    listing: Listing,
    found: FileChecks,
    *,
    begun: bool,
    max_bad_ratio: float,
    held_out: float = 0.0,
    of_rank_0: bool = False,
) -> FrozenDataset:
    """Freeze the images of a new run, or verify that those of a resumed run are unchanged; quarantine the faulty ones.

    Without a held-out share, the images to evaluate on are those to train on.

    Args:
        folder: of the run.
        listing: the files of the source.
        found: the check of every file.
        begun: whether the run has begun.
        max_bad_ratio: share of the images that may be in quarantine.
        held_out: share of the images to keep out of training.
        of_rank_0: whether the folder has the images of another rank, which are to be the same.

    Raises:
        SourceError: too many images cannot be read, or there is none to train on, or to hold out.
        ConfigError: the images differ from those that the run began with.
    """
    path, quarantine_path = folder / IMAGES, folder / QUARANTINE
    sound, faults = found.where(found.sound), found.faults
    resumed = begun and path.is_file()
    recorded = read_records(path, sound, held_out) if resumed else sound
    listing = listing.skip({file: fault for file, fault in faults.items() if file not in recorded})
    refuse_if_empty(listing)
    # How recorded images are decoded follows from their content, which is verified below.
    now = sound if recorded is sound else recorded.updated(found)
    images = check.images(listing.source, now, listing.decoding)
    faulty = _within(recorded.names if resumed else listing.files, faults)
    if not resumed:
        quarantine_path.unlink(missing_ok=True)
    quarantine = Quarantine(quarantine_path, images.files, faulty, max_ratio=max_bad_ratio)
    if resumed:
        if recorded is not sound:
            _refuse_changes(listing.source, None if of_rank_0 else folder, recorded, found, quarantine.files)
        quarantine.release({file for file in quarantine.files if _is_as_recorded(file, recorded, sound)})
    quarantine.record_others(listing)
    quarantine.add({file: faults[file] for file in faulty})
    quarantine.stop_if_full()
    if not resumed:
        write_records(path, sound, held_out)
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    train, kept = (images, images) if held_out == 0 else _split(images, quarantine.files, held_out)
    return FrozenDataset(listing, train, kept, quarantine, fingerprint).without_quarantined()


def _within(names: Names, files: Iterable[str]) -> dict[str, int]:
    """Return where those of some files are that are among names."""
    return {file: i for file in files if (i := names.index_of(file)) is not None}


def _refuse_held_out(source: Source, faults: Mapping[str, str]) -> None:
    """Raise SourceError if any held-out image is bad."""
    if faults:
        bad = some(f"{file}: {reason}" for file, reason in faults.items())
        raise SourceError(
            f"{len(faults)} held-out images in {title(source)} cannot be read ({bad}); repair or remove them"
        )


def _split(images: Images, quarantined: set[str], share: float) -> tuple[Images, Images]:
    """Return the images to train on and those that are held out."""
    held_out = are_held_out(images.files, share)
    bad = np.zeros(len(images), dtype=bool)
    bad[list(_within(images.files, quarantined).values())] = True
    for part, is_in_part in (("training", ~held_out), ("evaluation", held_out)):
        if bad[is_in_part].all():
            raise SourceError(f"--held-out {share:g} leaves none of {len(images)} images for {part}; change it")
    return images.only(np.flatnonzero(~held_out)), images.only(np.flatnonzero(held_out))


def _is_as_recorded(file: str, recorded: FileChecks, sound: FileChecks) -> bool:
    return file in recorded and file in sound and sound[file].digest == recorded[file].digest


def _refuse_changes(
    source: Source, folder: Path | None, recorded: FileChecks, found: FileChecks, quarantined: Collection[str]
) -> None:
    """Raise ConfigError if images differ from those recorded; quarantined and unreadable ones are not compared.

    They are recorded in the folder of the run; None: those of rank 0.
    """
    indexes = found.names.indexes_of(recorded.names)
    now = found.of_files(recorded.names)
    is_new = found.sound
    is_new[indexes[indexes >= 0]] = False
    different = {
        "gone": recorded.names.where(indexes < 0),
        "with other content": recorded.names.where(now.sound & (now.digests != recorded.digests)),
        "new": found.names.where(is_new),
    }
    changes = {what: [file for file in files if file not in quarantined] for what, files in different.items()}
    changed = [f"{len(files)} {what} ({some(files)})" for what, files in changes.items() if files]
    if changed and folder is None:
        raise ConfigError(
            f"--data {title(source)} has other images than rank 0: {', '.join(changed)}; give all ranks the same"
        )
    if changed:
        raise ConfigError(
            f"--data {title(source)} has changed since the run in {folder} began: {', '.join(changed)}; "
            f"put the images back as they were, or choose another --out"
        )
