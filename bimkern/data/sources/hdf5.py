"""HDF5 files with an array of images, [N, H, W, C] or [N, H, W].

Shapes: N images, H W pixels, C channels.
"""

from pathlib import Path

from bimkern import optional
from bimkern.data.sources.arrays import ArrayRows, choose, label_of


class Hdf5Rows(ArrayRows):
    """A data set of an HDF5 file, read image by image; in chunks of one image, that reads no more than the image."""

    def __init__(self, path: Path, key: str | None) -> None:
        h5py = optional.load("h5py")
        file = h5py.File(path, "r")
        arrays: dict[str, tuple[tuple[int, ...], object]] = {}
        file.visititems(
            lambda name, item: arrays.update({name: (item.shape, item.dtype)}) if hasattr(item, "dtype") else None
        )
        key = choose(path, key, arrays)  # type: ignore[arg-type]  # a dtype of NumPy
        label = label_of(key)
        super().__init__(path, file[key], file[label] if label in arrays else None)
        self.key = key
