"""The images of a folder, checked as a run does it."""

from bimkern.data.check import check, readable
from bimkern.data.source import image_folder


def checked_images(folder):
    listing = image_folder(folder)
    return readable(listing, check(listing, workers=0))
