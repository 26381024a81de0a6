"""The images of a folder, checked as a run does it, and as PIL alone reads them."""

from PIL import Image, ImageOps

from bimkern.data.check import check, readable
from bimkern.data.source import image_folder


def checked_images(folder):
    listing = image_folder(folder)
    return readable(listing, check(listing, workers=0))


def upright(path):
    """Read an image in RGB as PIL turns it."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")
