"""Decoding: how the file of an image becomes pixels of 8 bits, in a number of channels.

Any image is converted to 1 channel (gray) or 3 (RGB). Other numbers of channels are never made up: they are read from
files that hold as many, .npy arrays [H, W, C], TIFFs and, for 4, RGBA images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from bimkern.data.arrays import count_channels, is_array, read_array
from bimkern.data.formats import (
    ARRAY_SUFFIX,
    CONVERTED,
    BadImage,
    OutOfResources,
    blamed_on_image,
    format_of,
    open_file,
    open_image,
    reason_of,
)
from bimkern.data.levels import Range, bounds, refuse_range, to_levels
from bimkern.data.orientation import UPRIGHT, orientation_of
from bimkern.data.tiff import read_bands, silence

__all__ = ["RGB", "Alpha", "Decoded", "Decoding", "Range", "decode", "decode_file", "stored_size"]

Alpha = Literal["drop", "white", "black"]

_BACKGROUNDS: dict[Alpha, str] = {"white": "#ffffff", "black": "#000000"}
# Of GIF and TIFF the first frame is read; MPO is a photograph and its preview.
_QUARANTINED_ANIMATED = ("PNG", "WEBP", "AVIF")
_AS_STORED = {4: "RGBA"}  # channels -> PIL's mode: images of it are read as they are stored
# PIL's modes of one channel of more than 8 bits; I is that of a PNG in older versions.
_DEEP = {"F": np.float32, **dict.fromkeys(("I", "I;16", "I;16L", "I;16B", "I;16N"), np.uint16)}
_DALI_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
_SUBFILE_TYPE, _PREVIEW = 254, 1  # TIFF's tag, and its bit for an image of reduced resolution
_BITS, _LEVEL_BITS = 258, 8  # TIFF's tag of the bits of every sample
_COLORS, _WHITE_IS_ZERO = 262, 0  # its tag of their meaning


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What images are decoded to."""

    channels: int = 3
    alpha: Alpha = "drop"  # in gray and RGB: left out, or the image is laid over white or black
    range: Range | None = None  # of values of more than 8 bits (levels.py); None: they are refused

    def __post_init__(self) -> None:
        refuse_range(self.range)
        if self.range is not None and self.range != "dtype":
            low, high = self.range
            object.__setattr__(self, "range", (float(low), float(high)))  # so that equal ones have the same text
        if self.alpha != "drop" and self.channels not in CONVERTED:
            raise ValueError(
                f"--alpha {self.alpha} is for gray and RGB: the encoder takes {self.channels} channels as they are "
                f"stored; leave it out"
            )

    @property
    def is_converted(self) -> bool:
        """Whether any image is converted to these channels."""
        return self.channels in CONVERTED

    def __str__(self) -> str:
        """Say what tells its images from those of others."""
        alpha = "" if self.alpha == "drop" else f", alpha over {self.alpha}"
        return f"{count_channels(self.channels)}{alpha}" + ("" if self.range is None else f", range {self.range}")


RGB = Decoding()


@dataclass(frozen=True)
class Decoded:
    """An image as its file stores it."""

    # One image in RGB or gray, or a gray one for every channel: PIL has no mode for most numbers of channels, and would
    # weigh the colors of RGBA by its alpha. Not turned; 1 / reduction of the width and height, rounded up.
    planes: tuple[Image.Image, ...]
    size: tuple[int, int]  # width and height in full, not turned
    reduction: int
    orientation: int  # how it is to be turned (orientation.py)
    pil_only: bool  # whether DALI might decode it to something else
    is_deep: bool = False  # whether its file holds more than 8 bits

    @property
    def pixels(self) -> Image.Image:
        """Return the image, where it is one in RGB or gray."""
        (image,) = self.planes
        return image


@blamed_on_image()
def stored_size(file: BinaryIO) -> tuple[int, int] | None:
    """Return width and height of an image from its header, not turned; None for an array or a TIFF.

    Raises:
        BadImage, OutOfResources: as decode().
    """
    if is_array(file) or format_of(file) == "TIFF":
        return None
    with open_image(file) as image:
        size = image.size
    file.seek(0)
    return size


def decode_file(path: Path, reduction: int = 1) -> Decoded:
    """Decode an image to RGB, as decode().

    Raises:
        BadImage, OutOfResources: as open_file() and decode().
    """
    with open_file(path) as file:
        return decode(file, reduction)


@blamed_on_image()
def decode(file: BinaryIO, reduction: int = 1, how: Decoding = RGB) -> Decoded:
    """Decode an image.

    CMYK is read in Adobe's polarity (0 is full ink) in every JPEG, as PIL does and web browsers do.

    Args:
        file: the image.
        reduction: 1, 2, 4 or 8; a JPEG in gray or RGB is decoded at 1 / reduction of its size, any other image in full.
        how: to what. To 1 channel and to 3 an array of gray or RGB is converted, too. For 4 channels, RGBA images are
            read besides arrays and TIFFs.

    Raises:
        BadImage: it is truncated, of another format, animated, or too large; of more than 8 bits a channel without a
            range; or it holds other channels than those asked for, and is to be converted neither to gray nor to RGB;
            or the file raises any other error.
        OutOfResources: there is no memory for it now.
    """
    if is_array(file):
        return _of_values(read_array(file, how.channels, how.range), how)
    if format_of(file) == "TIFF" and _is_for_tifffile(file, how):
        bands = read_bands(file, how.channels, how.range)
        if bands.has_alpha and how.alpha != "drop":
            raise BadImage(f"alpha of more than 8 bits, which --alpha {how.alpha} does not read; convert it to 8")
        return _of_values(bands.values, how, bands.orientation)
    with open_image(file) as image:
        return _decode(image, reduction, how)


def _decode(image: ImageFile.ImageFile, reduction: int, how: Decoding) -> Decoded:
    """Decode an image that PIL has opened."""
    if image.format in _QUARANTINED_ANIMATED and getattr(image, "is_animated", False):
        raise BadImage("animated")
    if ";16" in str(image.tile) and image.mode not in _DEEP:
        raise BadImage("16 bits per channel in color, of which Pillow reads 8; convert it to a TIFF, or to 8")
    if getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0) & _PREVIEW:
        raise BadImage("a preview, as in a camera's raw file; convert the photograph to JPEG or PNG")
    if not how.is_converted:
        _refuse_other_channels(image, how.channels)
    if image.mode in _DEEP:
        return _decode_deep(image, how)
    size = image.size
    done = _reduce(image, reduction, CONVERTED.get(how.channels))
    image.load()
    is_composited = how.alpha != "drop" and image.has_transparency_data
    pil_only = is_composited or _is_pils_alone(image)
    if not how.is_converted:
        planes = image.split()
    else:
        whole = _composited(image, _BACKGROUNDS[how.alpha]) if is_composited else image
        planes = (_converted(whole, CONVERTED[how.channels]),)
    return Decoded(planes, size, done, orientation_of(image), pil_only)


def _is_for_tifffile(file: BinaryIO, how: Decoding) -> bool:
    """Return whether Pillow reads no such TIFF: of other bands, or of more than 8 bits in color or in integers."""
    silence("PIL.TiffImagePlugin")
    try:
        with open_image(file) as image:
            mode, tags = image.mode, getattr(image, "tag_v2", {})
        is_deep = max(tags.get(_BITS, (1,))) > _LEVEL_BITS
        is_inverted = tags.get(_COLORS) == _WHITE_IS_ZERO  # which Pillow regards in 8 bits alone
    except OutOfResources:
        raise
    except Exception as error:  # Pillow may raise anything on invalid tags
        reason_of(error)  # unless it is not the image's fault
        return True
    finally:
        file.seek(0)
    if not how.is_converted:
        return is_deep or mode != _AS_STORED.get(how.channels)
    return is_deep and (mode == "I" or mode not in _DEEP or is_inverted)


def _decode_deep(image: ImageFile.ImageFile, how: Decoding) -> Decoded:
    """Decode an image of one channel of more than 8 bits."""
    dtype = np.dtype(_DEEP[image.mode])
    bounds(dtype, how.range)
    if image.format == "JPEG2000" and how.range != "dtype":
        raise BadImage("JPEG 2000 of more than 8 bits, which Pillow scales to 16: take --range dtype, or convert it")
    image.load()
    return _of_values(np.asarray(image).astype(dtype)[:, :, None], how, orientation_of(image))


def _of_values(values: NDArray[Any], how: Decoding, orientation: int = UPRIGHT) -> Decoded:
    """Return the image of values [H, W, C], whose channels are as many as wanted, or gray or RGB in place of these."""
    levels = to_levels(values, how.range)
    height, width, count = levels.shape
    if how.is_converted:
        image = Image.fromarray(np.ascontiguousarray(levels.squeeze(2) if count == 1 else levels))
        planes: tuple[Image.Image, ...] = (_converted(image, CONVERTED[how.channels]),)
    else:
        planes = tuple(Image.fromarray(np.ascontiguousarray(levels[:, :, i])) for i in range(count))
    is_deep = values.dtype != np.uint8
    return Decoded(planes, (width, height), 1, orientation, pil_only=True, is_deep=is_deep)


def _composited(image: Image.Image, color: str) -> Image.Image:
    """Lay an image over a color, by its alpha or its transparent color."""
    colors = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, color), colors).convert("RGB")


def _refuse_other_channels(image: Image.Image, channels: int) -> None:
    """Raise BadImage unless an image holds the channels that are asked for."""
    mode = _AS_STORED.get(channels)
    if image.mode != mode:
        has = f"has {count_channels(len(image.getbands()))} ({image.mode})"
        takes = f"the encoder takes {channels}{f' ({mode})' if mode else ''}"
        raise BadImage(f"{has}, {takes}; a TIFF or a {ARRAY_SUFFIX} file [H, W, {channels}] holds as many")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which copies an image of that mode too


def _reduce(image: ImageFile.ImageFile, reduction: int, mode: str | None) -> int:
    """Have an image decoded at reduced size, and to gray, if its format can do so; return the reduction.

    CMYK is not: RGB is no linear function of it, so that means of its pixels have other colors.
    """
    if image.mode not in ("RGB", "L") or (reduction == 1 and mode != "L"):
        return 1
    width, height = image.size
    draft = image.draft(mode, (max(width // reduction, 1), max(height // reduction, 1)))
    return 1 if draft is None else round(width / draft[1][2])  # its width before it is rounded up


def _is_pils_alone(image: ImageFile.ImageFile) -> bool:
    """Return whether DALI might decode an image to something else than PIL, or not at all.

    It has no GIF, refuses some TIFF and rounds the palette of others, inverts CMYK by Adobe's marker alone, and loses
    its way in a WebP whose EXIF stands behind an image of an odd number of bytes.
    """
    webp_with_exif = image.format == "WEBP" and "exif" in image.info
    return image.format not in _DALI_FORMATS or image.mode == "CMYK" or webp_with_exif
