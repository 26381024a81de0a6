"""The images that loaders read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from bimkern.data.decoding import RGB, Decoded, Decoding, decode
from bimkern.data.integers import Int64
from bimkern.data.names import Names
from bimkern.data.orientation import FIRST_TRANSPOSED
from bimkern.data.source import Source, open_in, read_ahead
from bimkern.image_size import ImageSize


class KeptImages(Protocol):
    """Decoded images that are kept (decoded_cache.py), by sample id."""

    def get(self, sample_id: int) -> Decoded | None: ...
    def only(self, sample_ids: Int64) -> "KeptImages": ...


@dataclass(frozen=True, eq=False)
class Images:
    """A fixed list of images, each of which was readable once (check.py)."""

    source: Source
    files: Names  # sorted
    sizes: Int64  # [N, 2], width and height, upright
    orientations: Int64  # [N], how the stored images are turned upright (orientation.py)
    pil_only: NDArray[np.bool_]  # [N], images that DALI might decode to something else
    digests: NDArray[np.uint64]  # [N], of the files
    unreadable: frozenset[int] = frozenset()  # sample ids of those that have gone bad since
    decoding: Decoding = RGB
    kept: KeptImages | None = None
    on_disk: bool = True  # whether path() says of all of them where they lie

    @property
    def channels(self) -> int:
        return self.decoding.channels

    def __len__(self) -> int:
        return len(self.files)

    def for_pil(self, size: ImageSize, sample_ids: Int64 | slice = slice(None)) -> NDArray[np.bool_]:
        """Return which images PIL decodes also where DALI is the loader, for crops of a size; of all, or of some.

        A batch of DALI's has one shape: crops that are no squares must not come out of it on their side.
        """
        pil_only = self.pil_only[sample_ids]
        return pil_only if size.is_square else pil_only | (self.orientations[sample_ids] >= FIRST_TRANSPOSED)

    def only(self, sample_ids: Sequence[int] | Int64) -> "Images":
        """Return some of them, all taken to be readable."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        arrays: dict[str, Any] = {name: v[ids] for name, v in vars(self).items() if isinstance(v, np.ndarray)}
        kept = None if self.kept is None else self.kept.only(ids)
        return replace(self, files=self.files.take(ids), unreadable=frozenset(), kept=kept, **arrays)

    def path(self, sample_id: int) -> Path:
        """Return where an image lies, if all lie on disk."""
        path = self.source.path(self.files[sample_id])
        assert path is not None
        return path

    def open(self, sample_id: int) -> BinaryIO:
        """Open the file of an image.

        Raises:
            BadImage, OutOfResources: it, or any file, cannot be read now.
        """
        return open_in(self.source, self.files[sample_id])

    def read_ahead(self, sample_ids: Sequence[int]) -> None:
        """Have the images fetched that are opened next, but for those that are kept decoded."""
        if self.kept is None:
            read_ahead(self.source, [self.files[sample_id] for sample_id in sample_ids])

    def decode(self, sample_id: int, reduction: int = 1) -> Decoded:
        """Decode an image, unless it is kept decoded.

        Raises:
            BadImage, OutOfResources: it, or any file, cannot be read now.
        """
        kept = None if self.kept is None or reduction != 1 else self.kept.get(sample_id)
        if kept is not None:
            return kept
        with self.open(sample_id) as file:
            return decode(file, reduction, self.decoding)
