"""The dataset of a run: frozen when it starts, verified when it resumes, less the images in quarantine.

images.jsonl lists the images trained on and those held out, with sizes and digests. quarantine.jsonl lists images that
cannot be read and why, and the non-image files that were skipped, one record per suffix and reason.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bimkern.data import check
from bimkern.data.check import FileCheck, readable
from bimkern.data.held_out import is_held_out
from bimkern.data.source import Images, Listing, Source, SourceError, refuse_if_empty, suffix_of, title
from bimkern.files import jsonl
from bimkern.train.config.run import ConfigError

logger = logging.getLogger("bimkern.train")

IMAGES, QUARANTINE = "images.jsonl", "quarantine.jsonl"
_EXAMPLES = 3  # files in a message


class Quarantine:
    """The images that a run does without; too large a share of all stops it."""

    def __init__(self, path: Path, images: Iterable[str], *, max_ratio: float) -> None:
        """Read a quarantine file.

        Args:
            path: of the file; it need not exist.
            images: names of all images of the run, readable or not.
            max_ratio: share of them that may be in quarantine.
        """
        self.path = path
        self.files = {record["file"] for record in jsonl.read(path) if "file" in record}
        self.num_images = len(self.files.union(images))
        self._max_ratio = max_ratio

    def release(self, files: set[str]) -> None:
        """Remove files from the quarantine."""
        if released := self.files & files:
            logger.warning(
                "%d images released from quarantine: they are as recorded again (%s)", len(released), _some(released)
            )
            self.files -= released
            jsonl.write(self.path, [record for record in jsonl.read(self.path) if record.get("file") not in released])

    def record_others(self, listing: Listing) -> None:
        """Record the non-image files, a few examples of every suffix and reason; they do not count as faults."""
        alike = defaultdict(list)
        for file, reason in listing.others.items():
            alike[suffix_of(file), reason].append(file)
        others = [
            {"suffix": suffix, "files": len(files), "examples": files[:_EXAMPLES], "reason": reason}
            for (suffix, reason), files in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
        records = jsonl.read(self.path)
        if others != [record for record in records if "suffix" in record]:
            jsonl.write(self.path, [*others, *(record for record in records if "suffix" not in record)])

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
        examples = _some(f"{file}: {reason}" for file, reason in new.items())
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

    def hold_out(self, listing: Listing, found: dict[str, FileCheck]) -> "FrozenDataset":
        """Return the dataset with other images to evaluate on, all of which must be readable.

        Raises:
            SourceError: some are not, or there is none.
        """
        faults = {file: one.fault for file, one in found.items() if one.fault is not None}
        listing = listing.skip(faults)
        refuse_if_empty(listing)
        _refuse_held_out(listing.source, {file: faults[file] for file in listing.files if file in faults})
        return replace(self, held_out=readable(listing, found))

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
        sample_ids = {file: i for i, file in enumerate(images.files)}
        unreadable = frozenset(sample_ids[file] for file in self.quarantine.files & sample_ids.keys())
        return replace(images, unreadable=unreadable)


def freeze_dataset(
    folder: Path,
    listing: Listing,
    found: dict[str, FileCheck],
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
    resumed = begun and path.is_file()
    records = jsonl.read(path) if resumed else []
    recorded = {record["file"] for record in records}
    listing = listing.skip({f: one.fault for f, one in found.items() if one.fault is not None and f not in recorded})
    refuse_if_empty(listing)
    if resumed:
        images = _recorded(listing, records, found)
        faulty = [file for file in images.files if file in found and found[file].fault is not None]
    else:
        quarantine_path.unlink(missing_ok=True)
        images = readable(listing, found)
        faulty = [file for file in listing.files if found[file].fault is not None]
    quarantine = Quarantine(quarantine_path, (*images.files, *faulty), max_ratio=max_bad_ratio)
    if resumed:
        _refuse_changes(listing.source, None if of_rank_0 else folder, records, found, quarantine.files)
        quarantine.release(
            {r["file"] for r in records if r["file"] in found and found[r["file"]].digest == r["digest"]}
        )
    quarantine.record_others(listing)
    quarantine.add({file: found[file].fault or "" for file in faulty})
    quarantine.stop_if_full()
    if not resumed:
        jsonl.write(path, [_record(file, found[file], held_out) for file in images.files])
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    train, kept = (images, images) if held_out == 0 else _split(images, quarantine.files, held_out)
    return FrozenDataset(listing, train, kept, quarantine, fingerprint).without_quarantined()


def _refuse_held_out(source: Source, faults: Mapping[str, str]) -> None:
    """Raise SourceError if any held-out image is bad."""
    if faults:
        bad = _some(f"{file}: {reason}" for file, reason in faults.items())
        raise SourceError(
            f"{len(faults)} held-out images in {title(source)} cannot be read ({bad}); repair or remove them"
        )


def _split(images: Images, quarantined: set[str], share: float) -> tuple[Images, Images]:
    """Return the images to train on and those that are held out."""
    parts: tuple[list[int], list[int]] = ([], [])
    for i, file in enumerate(images.files):
        parts[is_held_out(file, share)].append(i)
    for part, sample_ids in zip(("training", "evaluation"), parts, strict=True):
        if all(images.files[i] in quarantined for i in sample_ids):
            raise SourceError(f"--held-out {share:g} leaves none of {len(images)} images for {part}; change it")
    return images.only(parts[0]), images.only(parts[1])


def _record(file: str, found: FileCheck, held_out: float) -> jsonl.Record:
    record = {"file": file, "width": found.width, "height": found.height, "digest": found.digest}
    return record | ({"held_out": True} if is_held_out(file, held_out) else {})


def _recorded(listing: Listing, records: list[jsonl.Record], found: dict[str, FileCheck]) -> Images:
    """Return the recorded images; how they are decoded follows from their content, which is verified elsewhere."""
    recorded = {r["file"]: FileCheck(width=r["width"], height=r["height"]) for r in records}
    good = {file: found[file] for file in recorded if file in found and found[file].fault is None}
    return check.images(listing.source, recorded | good, listing.decoding)


def _refuse_changes(
    source: Source, folder: Path | None, records: list[jsonl.Record], found: dict[str, FileCheck], quarantined: set[str]
) -> None:
    """Raise ConfigError if images differ from those recorded; quarantined and unreadable ones are not compared.

    They are recorded in the folder of the run; None: those of rank 0.
    """
    before = {record["file"]: record["digest"] for record in records if record["file"] not in quarantined}
    now = {file: result for file, result in found.items() if file not in quarantined}
    changes = {
        "gone": [file for file in before if file not in now],
        "with other content": [
            file
            for file, digest in before.items()
            if file in now and now[file].fault is None and now[file].digest != digest
        ],
        "new": [file for file, result in now.items() if file not in before and result.fault is None],
    }
    changed = [f"{len(files)} {what} ({_some(files)})" for what, files in changes.items() if files]
    if changed and folder is None:
        raise ConfigError(
            f"--data {title(source)} has other images than rank 0: {', '.join(changed)}; give all ranks the same"
        )
    if changed:
        raise ConfigError(
            f"--data {title(source)} has changed since the run in {folder} began: {', '.join(changed)}; "
            f"put the images back as they were, or choose another --out"
        )


def _some(texts: Iterable[str]) -> str:
    """Join the first few texts into one line, with unprintable characters escaped."""
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in text) for text in texts]
    more = [f"and {len(shown) - _EXAMPLES} more"] if len(shown) > _EXAMPLES else []
    return ", ".join([*shown[:_EXAMPLES], *more])
