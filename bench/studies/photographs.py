"""Which photograph a crop comes from: small crops of regions that no training crop touches.

What would give a photograph away without being understood is taken from every crop: colors, brightness, contrast, and
all else that a histogram of its gray levels shows, which is made flat; scale and orientation are random.

Shapes: B crops, S pixels a side; H W pixels of a photograph.
"""

import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.studies.data import StudyData
from bimkern.data.decoding import Decoding, decode
from bimkern.data.formats import BadImage
from bimkern.data.listing import list_images
from bimkern.data.source import SourceError, open_in
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.evaluate.labeled import Labeled, Part, in_memory

SIDE = 64
_SHORT_SIDE = 512  # pixels, at most, of a photograph: larger ones are reduced
_STRIPS = 4  # across the longer side, in turns to train and to test on
_GAP = 16  # pixels between two strips
_CROP = (48, 80)  # pixels of the photograph that a crop has a side, at least and at most
_FLAT = 6.0  # standard deviation of gray levels, of 256, below which a crop shows nothing and another one is drawn
_TRIES = 20  # draws for a crop
_CLASSES = 100  # at most
_LEAST_LENGTH = _STRIPS * _CROP[0] + (_STRIPS - 1) * _GAP
_BUNDLED = {
    "skimage.data": (
        *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
        *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
        *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}

Gray = NDArray[np.float32]  # [H, W], in [0, 255]
Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """The photographs inside scikit-image and scikit-learn, or up to a hundred of those in a folder."""

    folder: Path | None = None
    crops: int = 48  # of every strip to train on; half as many of one to test on
    side: int = SIDE

    def load(self) -> StudyData:
        """Cut all crops, the same ones every time. One of the two strips to train on chooses learning rates.

        Raises:
            SourceError: the folder cannot be read, or fewer than two photographs can be cut.
        """
        found = dict[str, list[Tensor]]()
        for name, photograph in _bundled() if self.folder is None else _in_folder(self.folder):
            strips = [
                cut(photograph, box, self.crops // (1 + number % 2), seed=f"{name}, strip {number}")
                for number, box in enumerate(strip_boxes(*photograph.shape))
            ]
            if strips and all(map(len, strips)):
                found[name] = strips
        if len(found) < 2:
            raise SourceError(
                f"{self.folder}: at least 2 photographs must show something in each of {_STRIPS} strips, got "
                f"{len(found)}; add some of at least {_LEAST_LENGTH} x {_CROP[0]} pixels"
            )

        def part(*numbers: int) -> Part:
            return _part(torch.cat([strips[number] for number in numbers]) for strips in found.values())

        classes = tuple(found)
        return StudyData(
            whole=Labeled(classes=classes, train=part(0, 2), test=part(1, 3)),
            selection=Labeled(classes=classes, train=part(0), test=part(2)),
        )


def strip_boxes(height: int, width: int) -> list[Box]:
    """Cut a photograph across its longer side; none where the strips have no room for a crop."""
    length, across = max(height, width), min(height, width)
    strip = (length - (_STRIPS - 1) * _GAP) // _STRIPS
    if min(strip, across) < _CROP[0]:
        return []
    starts = [number * (strip + _GAP) for number in range(_STRIPS)]
    if width >= height:
        return [(0, start, height, start + strip) for start in starts]
    return [(start, 0, start + strip, width) for start in starts]


def cut(photograph: Gray, box: Box, count: int, *, seed: str) -> Tensor:
    """Cut random squares out of a box: turned, mirrored, scaled to one size, their gray levels equally frequent.

    Returns:
        [count, 1, S, S] float32 in [0, 255]; [0, 1, S, S] where the box shows nothing.
    """
    generator = np.random.default_rng(zlib.crc32(seed.encode()))
    top, left, bottom, right = box
    largest = min(_CROP[1], bottom - top, right - left)
    crops: list[Gray] = []
    for _ in range(count * _TRIES):
        if len(crops) == count:
            break
        extent = int(generator.integers(_CROP[0], largest, endpoint=True))
        y = int(generator.integers(top, bottom - extent, endpoint=True))
        x = int(generator.integers(left, right - extent, endpoint=True))
        crop = photograph[y : y + extent, x : x + extent]
        if crop.std() < _FLAT:
            continue
        scaled = np.asarray(Image.fromarray(crop).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        turned = np.rot90(scaled, int(generator.integers(4)))
        crops.append(equalized(turned.T if generator.integers(2) else turned, generator))
    if len(crops) < count:
        return torch.empty(0, 1, SIDE, SIDE)
    return torch.from_numpy(np.stack(crops)).unsqueeze(1)


def equalized(crop: Gray, generator: np.random.Generator) -> Gray:
    """Return the ranks of gray levels in [0, 255], so that all histograms are the same; equal ones in random order."""
    order = np.argsort(crop.ravel() + 1e-3 * generator.random(crop.size))
    ranks = np.empty(crop.size, dtype=np.float32)
    ranks[order] = np.arange(crop.size) * (255 / (crop.size - 1))
    return ranks.reshape(crop.shape)


def _part(of_classes: Iterable[Tensor]) -> Part:
    crops = list(of_classes)
    labels = torch.arange(len(crops)).repeat_interleave(torch.tensor([len(of_class) for of_class in crops]))
    return in_memory(torch.cat(crops), labels)


def _bundled() -> Iterator[tuple[str, Gray]]:
    for package, names in _BUNDLED.items():
        for name in names:
            resource = files(package) / name
            if resource.is_file():  # the set of photographs differs a little between versions
                with resource.open("rb") as stream, Image.open(stream) as image:
                    yield name, _reduced(image.convert("L"))


def _in_folder(folder: Path) -> Iterator[tuple[str, Gray]]:
    listing = list_images(ImageFolder(paths=(folder,)), Decoding(channels=1))
    count = min(len(listing), _CLASSES)
    for number in range(count):  # spread evenly
        name = listing.files[number * len(listing) // count]
        try:
            with open_in(listing.source, name) as stream:
                image = decode(stream, how=listing.decoding).pixels
        except BadImage as error:
            print(f"{folder}: {name} is left out: {error}", file=sys.stderr)
            continue
        yield name, _reduced(image)


def _reduced(image: Image.Image) -> Gray:
    scale = _SHORT_SIDE / min(image.size)
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.float32)
