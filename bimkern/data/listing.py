"""The files of a source, sorted: its images, and those that are none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bimkern.data.decoding import RGB, Decoding
from bimkern.data.formats import ARRAY_SUFFIX, NAMES, REMEDY, BadImage
from bimkern.data.levels import bounds
from bimkern.data.names import Names
from bimkern.data.reasons import Reasons
from bimkern.data.skipped import NO_IMAGE, has_image_suffix
from bimkern.data.source import Source, SourceError, title


@dataclass(frozen=True)
class Listing:
    """The files of a source: the images, and those that are none."""

    source: Source
    files: Names  # sorted
    others: Reasons = field(default_factory=lambda: Reasons.of({}))  # why they are skipped
    decoding: Decoding = RGB  # of the images

    @property
    def channels(self) -> int:
        return self.decoding.channels

    def __len__(self) -> int:
        return len(self.files)

    def skip(self, faults: Mapping[str, str]) -> "Listing":
        """Return a listing that skips files without an image's suffix for faults that were found in them.

        They may be anything, a camera's raw file for example, and are no damaged images.
        """
        if getattr(self.source, "only_images", False):
            return self
        skipped = {file: fault for file, fault in faults.items() if not has_image_suffix(file)}
        kept = np.ones(len(self), dtype=bool)
        kept[[i for file in skipped if (i := self.files.index_of(file)) is not None]] = False
        return replace(self, files=self.files.where(kept), others=self.others.joined(skipped))

    def damaged(self) -> dict[str, str]:
        """Return why parts of the source's files are not used, by their names; they are among the others."""
        damaged: Callable[[], dict[str, str]] = getattr(self.source, "damaged", dict)
        return damaged()

    def other_files(self) -> Reasons:
        """Return the others but for damaged parts, which are no files and have no suffix."""
        return self.others.without(self.damaged())

    def count_others(self) -> str:
        """Count the other files by suffix in words, the most frequent first."""
        ordered = sorted(self.other_files().count().items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {suffix}" for suffix, count in ordered)


def list_images(source: Source, decoding: Decoding = RGB) -> Listing:
    """List the files of a source as images that are decoded in one way.

    Arrays beside images, of features for example, count as images only where the channels of an encoder need arrays, or
    a range says what their values mean.

    Raises:
        SourceError: it cannot be used, or holds no image.
    """
    found = Reasons.of(source.files())
    if not takes_arrays(decoding):
        found = found.skip(ARRAY_SUFFIX, NO_IMAGE)
    images = found.images
    listing = Listing(source, found.names.where(images), found.where(~images), decoding)
    refuse_if_empty(listing)
    try:
        if (dtype := getattr(source, "dtype", None)) is not None:
            bounds(dtype, decoding.range)
    except BadImage as error:  # all are
        raise SourceError(f"{title(source)}: {error}") from error
    return listing


def takes_arrays(decoding: Decoding) -> bool:
    """Return whether .npy files in a folder are images."""
    return not decoding.is_converted or decoding.range is not None


def refuse_if_empty(listing: Listing) -> None:
    """Raise SourceError if a listing has no image."""
    if not listing.files:
        names = f"{NAMES} or {ARRAY_SUFFIX}" if takes_arrays(listing.decoding) else NAMES
        others = listing.count_others()
        found = f", only other files ({others}); {REMEDY}" if others else ", and no other file"
        if damaged := listing.damaged():
            found += f"; damaged parts left out: {len(damaged)}"
        raise SourceError(f"there is no {names} image in {title(listing.source)}{found}")
