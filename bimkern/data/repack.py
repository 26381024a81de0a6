"""One image as it is packed: shrunk and encoded again, or its file as it is."""

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from bimkern.data.arrays import is_array
from bimkern.data.decoding import RGB, Decoded, Decoding, decode, stored_size
from bimkern.data.formats import ARRAY_SUFFIX, BadImage, format_of, reason_of
from bimkern.data.orientation import turned

Side = Literal["shortest", "longest"]

_SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
}
_REDUCTIONS = (8, 4, 2)
_GAP = 2  # a JPEG is decoded at reduced size if that is still so many times the size wanted


@dataclass(frozen=True, kw_only=True)
class Repacking:
    """What is done to an image."""

    size: int = 400  # pixels of that side; smaller images are never enlarged
    side: Side = "shortest"
    quality: int = 90  # of JPEG
    keep: bool = False  # keep files as they are
    decoding: Decoding = RGB  # of the encoder that is to read them

    def options(self) -> dict[str, Any]:
        """Return all that is set, by the names of options, as JSON has it."""
        options = asdict(self)
        options |= options.pop("decoding")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


@dataclass(frozen=True)
class PackedImage:
    """The file of a packed image."""

    content: bytes
    suffix: str  # of its format
    copied: bool  # whether it is the file that was there


def repack(content: bytes, how: Repacking) -> PackedImage:
    """Shrink an image and encode it as JPEG, or as an array where it has other than 1 or 3 channels.

    A file stays as it is if all are to be kept, or if it is a JPEG or an array of 8 bits that is small enough. An array
    of 1 or 3 channels becomes a PNG of the same pixels: beside images, arrays are not read as such.

    Args:
        content: the file.
        how: what to do.

    Raises:
        BadImage: it cannot be read.
        OutOfResources: nothing can be read.
    """
    file = BytesIO(content)
    size = stored_size(file)
    image = decode(file, 1 if size is None else _reduction(size, how), how.decoding)
    file.seek(0)
    format_name = format_of(file)
    is_small = _shrunk(image.size, how) == image.size
    if is_array(file):
        if how.decoding.is_converted and (how.keep or is_small):
            return PackedImage(_encoded(image.pixels, "PNG"), ".png", copied=False)
        if how.keep or (is_small and not image.is_deep):
            return PackedImage(content, ARRAY_SUFFIX, copied=True)
    elif how.keep or (is_small and format_name == "JPEG"):
        assert format_name is not None
        return PackedImage(content, _SUFFIXES[format_name], copied=True)
    return _small(image, how)


def _small(image: Decoded, how: Repacking) -> PackedImage:
    size = _shrunk(image.size, how)
    planes = [turned(plane.resize(size, Image.Resampling.BICUBIC), image.orientation) for plane in image.planes]
    if not how.decoding.is_converted:
        stream = BytesIO()
        npy.write_array(stream, np.dstack([np.asarray(plane) for plane in planes]))
        return PackedImage(stream.getvalue(), ARRAY_SUFFIX, copied=False)
    return PackedImage(_encoded(planes[0], "JPEG", quality=how.quality), ".jpg", copied=False)


def _encoded(image: Image.Image, format_name: str, **options: int) -> bytes:
    stream = BytesIO()
    try:
        image.save(stream, format_name, **options)
    except Exception as error:  # of sides that are too long for the format, for example
        raise BadImage(reason_of(error)) from error
    return stream.getvalue()


def _shrunk(size: tuple[int, int], how: Repacking) -> tuple[int, int]:
    """Return width and height of an image in place of those it has."""
    side = min(size) if how.side == "shortest" else max(size)
    if side <= how.size:
        return size
    width, height = (max(1, round(length * how.size / side)) for length in size)
    return width, height


def _reduction(size: tuple[int, int], how: Repacking) -> int:
    """Return at what part of its size an image may be decoded, if it is a JPEG."""
    wanted = (1, 1) if how.keep else _shrunk(size, how)
    if wanted == size:
        return 1
    enough = (n for n in _REDUCTIONS if all(have >= _GAP * n * want for have, want in zip(size, wanted, strict=True)))
    return next(enough, 1)
