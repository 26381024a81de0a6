"""Images and masks in folders, as pairs for training and testing.

Shapes: H W pixels.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from examples.transfer.errors import TransferError

IGNORED = 255  # the value of pixels that count nowhere
_IMAGES = {".jpg", ".jpeg", ".png"}
_PARTS = {"train": ("train", "training"), "val": ("val", "validation", "test")}
_KINDS = {"images": ("images",), "masks": ("masks", "annotations")}


@dataclass(frozen=True)
class Pairs(Dataset[Any]):
    """Images with the mask that has the same name, a PNG of class numbers, 255 for pixels that count nowhere."""

    files: list[tuple[Path, Path]]
    transform: v2.Transform
    zero_is_ignored: bool  # then classes begin with 1

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image [3, H, W], normalized, and its classes [H, W]."""
        image, mask = self.read(index)
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image, mask.long()

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image [3, H, W] and its classes [H, W], uint8 as they are stored."""
        return TF.pil_to_tensor(Image.open(self.files[index][0]).convert("RGB")), self.classes(index)

    def classes(self, index: int) -> Tensor:
        """Return the classes of the pixels of an image, [H, W] uint8.

        Raises:
            TransferError: the mask holds something else.
        """
        path = self.files[index][1]
        with Image.open(path) as mask:
            values, bands = np.asarray(mask), len(mask.getbands())
        if bands > 1:
            colors = values[..., :3] if bands > 2 else values[..., :1]  # without alpha
            if (colors != colors[..., :1]).any():
                raise TransferError(f"{path} has {bands} channels that differ; a mask must have one, of class numbers")
            values = colors[..., 0]
        if values.dtype != np.bool_ and values.max() > IGNORED:
            raise TransferError(f"{path} has class {values.max()}; masks must have numbers up to {IGNORED}")
        labels = torch.from_numpy(values.astype(np.uint8))
        if not self.zero_is_ignored:
            return labels
        return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1).to(torch.uint8)

    def check(self, num_classes: int) -> None:
        """Make sure that no mask has another class or size, on which training would fail at any time.

        Raises:
            TransferError: one has, or no pixel counts.
        """

        def highest(index: int) -> int:
            """Return the highest class of a mask, -1 if none of its pixels counts."""
            image, mask = self.files[index]
            labels = self.classes(index)
            with Image.open(image) as pixels:
                if (pixels.height, pixels.width) != labels.shape:
                    sizes = (f"{width}x{height}" for height, width in (labels.shape, (pixels.height, pixels.width)))
                    raise TransferError(f"{mask} must be as large as {image}, got {' and '.join(sizes)}")
            return int(labels.short().where(labels != IGNORED, -1).max())

        found = -1
        with ThreadPoolExecutor() as pool:
            for (_, mask), high in zip(self.files, pool.map(highest, range(len(self))), strict=True):
                found = max(found, high)
                if high >= num_classes:
                    value = high + self.zero_is_ignored
                    raise TransferError(
                        f"{mask} has class {value}, beyond the number of classes, {num_classes}; raise --num-classes, "
                        "or list all in classes.txt"
                    )
        if found < 0:
            raise TransferError(
                f"{self.files[0][1].parent}: no pixel counts; all of them are {IGNORED}, or are ignored"
            )


def read_folder(folder: Path, part: str, transform: v2.Transform, *, zero_is_ignored: bool = False) -> Pairs:
    """Find the images of a part, `images/PART/`, and their masks, `masks/PART/`; ADE20K's names are known too.

    Raises:
        TransferError: there are none, or an image has no mask.
    """
    images, masks = (_find(folder, kind, part) for kind in _KINDS)
    files = []
    for image in sorted(path for path in images.iterdir() if path.suffix.lower() in _IMAGES):
        mask = masks / f"{image.stem}.png"
        if not mask.is_file():
            raise TransferError(f"{image} has no mask; it should be {mask}")
        files.append((image, mask))
    if not files:
        raise TransferError(f"{images} holds no {', '.join(sorted(_IMAGES))}")
    return Pairs(files, transform, zero_is_ignored)


def _find(folder: Path, kind: str, part: str) -> Path:
    names = [f"{first}/{second}" for first in _KINDS[kind] for second in _PARTS[part]]
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise TransferError(f"{folder} has none of {', '.join(names)}")
