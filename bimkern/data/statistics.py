"""Mean and standard deviation of the pixels of a data set, measured on a sample of its images.

Shapes: C channels.
"""

from contextlib import closing
from dataclasses import dataclass

import numpy as np

from bimkern.data.decoding import decode
from bimkern.data.formats import BadImage, OutOfResources, reason_of
from bimkern.data.listing import Listing
from bimkern.data.source import SourceError, open_in, title
from bimkern.data.workers import WorkerDied, ahead

_SAMPLE = 2000  # images
_SEED = 0
_DIGITS = 4
_LEVELS = np.arange(256)  # of a pixel: counts of them have exact sums, in memory that does not depend on the size


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of pixels in [0, 1]: a value for every channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int  # that were measured


def measure(listing: Listing, *, workers: int) -> Statistics:
    """Measure the images of a listing, or 2000 of them, drawn with a fixed seed; every image has the same weight.

    Images that cannot be read are left out. The result depends on the images alone.

    Raises:
        SourceError: none can be read, or the machine is out of memory.
    """
    count = len(listing)
    ids = np.sort(np.random.default_rng(_SEED).permutation(count)[:_SAMPLE]).tolist()

    def work(i: int) -> list[list[float]] | str:
        return _moments(listing, listing.files[i])

    try:
        with closing(ahead(work, ids, workers=workers, prefetch=8, what="measuring the images")) as found:
            results = list(found)
    except (WorkerDied, OutOfResources, MemoryError) as error:
        raise SourceError(f"{title(listing.source)} cannot be measured ({str(error) or 'out of memory'})") from error
    measured = [moments for moments in results if not isinstance(moments, str)]
    if not measured:
        why = f"{listing.files[ids[0]]}: {results[0]}"
        raise SourceError(f"{title(listing.source)} cannot be measured: no image of {len(ids)} can be read ({why})")
    mean, square = np.mean(measured, axis=0)  # [C] each
    std = np.sqrt(np.maximum(square - mean**2, 0))
    mean, std = (np.round(values, _DIGITS).tolist() for values in (mean, std))
    return Statistics(mean=tuple(mean), std=tuple(std), images=len(measured))


def _moments(listing: Listing, file: str) -> list[list[float]] | str:
    """Return the means of the pixels and of their squares, [2, C], or why an image cannot be read."""
    try:
        with open_in(listing.source, file) as opened:
            planes = decode(opened, how=listing.decoding).planes
        counts = np.array([plane.histogram() for plane in planes]).reshape(listing.channels, len(_LEVELS))
        pixels = counts[0].sum()
        return [(counts @ _LEVELS / (255 * pixels)).tolist(), (counts @ _LEVELS**2 / (255**2 * pixels)).tolist()]
    except OutOfResources:
        raise
    except BadImage as error:
        return str(error)
    except Exception as error:  # a source of the user's own may raise anything
        return reason_of(error)  # unless it is not the image's fault
