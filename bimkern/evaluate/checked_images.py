"""The images of a source that can be read: all are checked first, as for training, and bad ones are left out.

Shapes: B images, C channels, H W pixels.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor

from bimkern.abridged import some
from bimkern.data.augment import Interpolation, RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.decoding import Decoding
from bimkern.data.images import Images
from bimkern.data.listing import list_images, refuse_if_empty
from bimkern.data.loader import default_workers
from bimkern.data.pil import PilLoader
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.source import Source, title
from bimkern.data.step_layout import StepLayout
from bimkern.evaluate.errors import EvaluationError
from bimkern.exporters.trained import Preprocessing

logger = logging.getLogger("bimkern.evaluate")

MAX_BAD_RATIO = 0.1  # of the images, as in training
_SCALE = (0.08, 1.0)  # share of the image's area


def readable_images(source: Source, decoding: Decoding, max_bad_ratio: float) -> Images:
    """Check the images of a source and return those that can be read; the check is cached.

    Raises:
        SourceError: the source cannot be read, or holds no image.
        EvaluationError: more than max_bad_ratio of the images cannot be read.
    """
    listing = list_images(source, decoding)
    found = check(listing, workers=default_workers())
    listing = listing.skip(found.faults)
    refuse_if_empty(listing)
    faults = {file: fault for file, fault in found.faults.items() if listing.files.index_of(file) is not None}
    if len(faults) == len(listing.files) or len(faults) > max_bad_ratio * len(listing.files):
        raise EvaluationError(
            f"{title(source)}: {_count(faults, len(listing.files))}, more than --max-bad-ratio {max_bad_ratio:g}; "
            "replace or remove them"
        )
    if faults:
        logger.warning("%s: %s; they are left out", title(source), _count(faults, len(listing.files)))
    return readable(listing, found)


def _count(faults: Mapping[str, str], of: int) -> str:
    return f"{len(faults)} of {of} images cannot be read ({some(f'{file}: {fault}' for file, fault in faults.items())})"


def random_crops(
    images: Images, preprocessing: Preprocessing, *, epochs: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random crops of all images, flipped or not, an epoch after the other.

    They depend on (seed, epoch, image) alone. An image that goes bad meanwhile is replaced by another.

    Returns:
        [B, C, H, W] uint8, and [B] int64, the index of every image; B is at most batch_size.

    Raises:
        LoadingFailed: no image can be read any more, or the loader keeps dying.

    Source: He et al. 2022 (MAE), linear probing: Inception's crops, flips, nothing else.
    """
    augment = RandomResizedCrop(scale=_SCALE, interpolation=cast(Interpolation, preprocessing.interpolation))
    layout = StepLayout.one_epoch(
        image_size=preprocessing.image_size, batch_size=batch_size, num_images=epochs * len(images)
    )
    data = MicroBatches(images=images, augment=augment, seed=seed, layout=layout)

    def warn(faults: Mapping[str, str], _: int) -> None:
        logger.warning("%s: %s; others take their place", title(images.source), _count(faults, len(images)))

    loader = ResilientLoader(PilLoader(workers=default_workers()), data, warn)
    for batches in loader.steps(0, layout.num_steps):
        for batch in batches:
            yield batch.images, batch.sample_ids
