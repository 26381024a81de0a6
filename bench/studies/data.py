"""What a study learns from and is tested on: labeled images in four parts, in memory and as files.

Shapes: B images.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from bimkern.evaluate.labeled import Labeled, Part
from bimkern.exporters.trained import Preprocessing
from bimkern.files import atomic
from bimkern.image_size import ImageSize
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.models.encoder import EncoderConfig

CHANNELS = 3
_SPLITS = ("whole", "selection")


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """The images of a study. Parts of one split share no pixels."""

    whole: Labeled  # all images to train on, and those that are held out: nothing is chosen by them
    selection: Labeled  # the training images in two parts, the second of which chooses learning rates

    def splits(self) -> Iterator[tuple[str, Labeled]]:
        yield from zip(_SPLITS, (self.whole, self.selection), strict=True)


class Source(Protocol):
    """Where the images of a study come from: a frozen dataclass, small enough to send to another process."""

    @property
    def side(self) -> int:
        """Pixels a side of what a ViT gets."""

    def load(self) -> StudyData: ...


def preprocessing(encoder: EncoderConfig) -> Preprocessing:
    """Say how images become what an encoder takes: scaled as a whole, nothing cropped."""
    return Preprocessing(image_size=encoder.image_size, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def subset(part: Part, indices: Tensor) -> Part:
    """Return some images of a part, by their indices [B]."""

    def read(chosen: Sequence[int], images: Preprocessing, channels: int) -> Tensor:
        return part.read(indices[list(chosen)].tolist(), images, channels)

    return Part(labels=part.labels[indices], read=read)


def all_pixels(part: Part, side: int) -> Tensor:
    """Return one channel of all images of a part, [B, side * side] float32 around zero."""
    scaled = Preprocessing(image_size=ImageSize.square(side), interpolation="bilinear", mean=(0.0,), std=(1.0,))
    images = torch.cat(list(part.batches(256, scaled, 1)))
    return images.flatten(1).float() / 255 - 0.5


def write_files(folder: Path, data: StudyData, images: Preprocessing) -> None:
    """Write the images as PNGs as an encoder takes them, a folder for each split, unless they are there.

    FOLDER/SPLIT/images-train/*.png and images-val/*.png are the images, which train.csv and val.csv list with labels.
    """
    if folder.exists():
        return
    with atomic.created_folder(folder) as scratch:
        for name, split in data.splits():
            for part, images_of in (("train", split.train), ("val", split.test)):
                _write_part(scratch / name, part, images_of, split.classes, images)


def _write_part(folder: Path, name: str, part: Part, classes: tuple[str, ...], images: Preprocessing) -> None:
    (folder / f"images-{name}").mkdir(parents=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        written = 0
        for batch in part.batches(256, images, CHANNELS):
            for pixels in batch:
                path = f"images-{name}/{written:06d}.png"
                Image.fromarray(pixels[0].numpy()).save(folder / path)
                writer.writerow([path, classes[int(part.labels[written])]])
                written += 1
