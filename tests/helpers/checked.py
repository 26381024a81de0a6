"""The images of a folder, checked as a run does it, and as PIL alone reads them."""

import numpy as np
from PIL import Image, ImageOps

from bimkern.data.check import check, readable
from bimkern.data.decoding import Decoding
from bimkern.data.listing import list_images
from bimkern.data.sources.image_folder import ImageFolder


def listed(folder, channels=3, **decoding):
    return list_images(ImageFolder(paths=(folder,)), Decoding(channels=channels, **decoding))


def checked_images(folder, channels=3, **decoding):
    listing = listed(folder, channels, **decoding)
    return readable(listing, check(listing, workers=0))


def labels_by_file(labels):
    """Return labels as a dictionary."""
    return dict(zip(labels.files, labels.numbers.tolist(), strict=True))


def upright(path):
    """Read an image in RGB as PIL turns it."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def away_from_edges(data):
    """Whether the filter sees nothing beyond the image, [B]."""
    crops = data[0]
    first, extent = crops.boxes[:, :2], crops.boxes[:, 2:]
    reach = 2 * np.maximum(extent / crops.size, 1) + 1
    return ((first >= reach) & (first + extent + reach <= crops.sizes)).all(axis=1)
