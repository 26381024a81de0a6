"""Images that are trained on and evaluated on: the same files, whatever they are called in either place."""

import os
from collections.abc import Hashable

import numpy as np

from bimkern.abridged import some
from bimkern.data.images import Images
from bimkern.data.source import SourceError, title


def refuse_overlap(train: Images, held_out: Images) -> None:
    """Make sure that no file is in two parts of a data set. Copies are other files: real data has some.

    Raises:
        SourceError: some are, in one line.
    """
    # Only files of equal content can be the same, which leaves few to look at.
    trained = {_origin(train, i) for i in _alike(train, held_out)} - {None}
    same = [held_out.files[i] for i in _alike(held_out, train) if _origin(held_out, i) in trained]
    if same:
        raise SourceError(
            f"{len(same)} of {len(held_out)} images to evaluate on, in {title(held_out.source)}, are also trained on "
            f"({some(map(repr, same))}); evaluate on others"
        )


def _alike(images: Images, others: Images) -> list[int]:
    """Return the sample ids of the images whose content is also among others."""
    return np.flatnonzero(np.isin(images.digests, others.digests)).tolist()


def _origin(images: Images, sample_id: int) -> Hashable:
    """Return what tells a file from all others: where it lies, on disk or in what is read; None: it is gone."""
    source, file = images.source, images.files[sample_id]
    if (path := source.path(file)) is not None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_dev, status.st_ino
    if hasattr(source, "origin"):
        origin: Hashable = source.origin(file)
        return origin
    return title(source), *(path.resolve() for path in source.paths), file
