"""Image files: the formats that are read, by content and not by name, and what a loader must know of a file.

Any image is converted to 1 channel (gray) or 3 (RGB). Other numbers of channels are never made up: they are read from
files that hold as many, .npy arrays [H, W, C] and, for 4, RGBA images.
"""

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageFile

from bimkern.data.orientation import UPRIGHT, orientation_of

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".jp2", ".j2k", ".jpx", ".avif"),
)
ARRAY_SUFFIX = ".npy"
NAMES = "JPEG, PNG, WebP, BMP, TIFF, GIF, JPEG 2000 or AVIF"
CONVERTED = {1: "L", 3: "RGB"}  # channels -> PIL's mode: any image is converted to it
# Files that lie beside images and are none: they are not opened, as there may be as many of them as images.
OTHER_SUFFIXES = (
    *(
        ".txt",
        ".caption",
        ".cls",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".xml",
        ".yaml",
        ".yml",
        ".toml",
        ".md",
        ".html",
        ".log",
    ),
    *(".npz", ".pt", ".pth", ".safetensors", ".parquet", ".h5", ".pkl", ".mat", ".tfrecord", ".db", ".pdf", ".log"),
    *(".zip", ".tar", ".tgz", ".gz", ".7z", ".mp3", ".wav", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".py", ".sh"),
)
REMEDY = "convert images of other formats to JPEG or PNG"
MAX_PIXELS = 89_478_485  # of an image, by default: Pillow's own limit

# PIL would also run Ghostscript on a disguised EPS.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF")
# Of GIF and TIFF the first frame is read; MPO is a photograph and its preview.
_QUARANTINED_ANIMATED = ("PNG", "WEBP", "AVIF")
_AS_STORED = {4: "RGBA"}  # channels -> PIL's mode: images of it are read as they are stored
_DALI_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
_SUBFILE_TYPE, _PREVIEW = 254, 1  # TIFF's tag, and its bit for an image of reduced resolution
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # in the first box of a file
_AVIF_BRANDS = (b"avif", b"avis")
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class BadImage(Exception):
    """A file is nothing to train on; the message says why."""


class OutOfResources(RuntimeError):
    """This process cannot read any file now, for want of memory or file handles."""


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

    @property
    def pixels(self) -> Image.Image:
        """Return the image, where it is one in RGB or gray."""
        (image,) = self.planes
        return image


def allow_pixels(limit: int) -> None:
    """Let images of up to so many pixels be decoded by this process: it is PIL's setting, which is global."""
    Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def pil_settings_kept() -> Iterator[None]:
    """Leave PIL's settings as they were; inside, its warnings are silent: a run lists what is wrong with an image."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def too_large(width: int, height: int) -> bool:
    """Return whether an image has more pixels than are allowed: a small file may unpack to more than memory holds."""
    return Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS


def open_file(path: Path) -> BufferedReader:
    """Open a file, and nothing else: a pipe would keep us waiting.

    Raises:
        BadImage: it cannot be read, or is no file.
        OutOfResources: nothing can be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadImage("not a regular file")
        return path.open("rb")
    except OSError as error:
        raise BadImage(reason_of(error)) from error


def is_image(file: BinaryIO) -> bool:
    """Return whether the content of a file begins as that of an image; whether it is whole is for decode() to find.

    Raises:
        BadImage, OutOfResources: it, or any file, cannot be read now.
    """
    try:
        return format_of(file) is not None
    except OSError as error:
        raise BadImage(reason_of(error)) from error


def format_of(file: BinaryIO) -> str | None:
    """Return PIL's name of the format of an image by its first bytes, None if it is no image; MPO counts as JPEG."""
    Image.init()
    start = _start(file)
    known = (name for name in _FORMATS if name in Image.OPEN)  # an older Pillow has no AVIF
    return next((name for name in known if (accept := Image.OPEN[name][1]) and accept(start) is True), None)


def describe_unknown(file: BinaryIO) -> str:
    """Say what a file is that is not read, and what to do."""
    start = _start(file)
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in _HEIF_BRANDS:
        return f"a HEIF image, which Pillow does not read; {REMEDY}"
    if brand in _AVIF_BRANDS:
        return f"an AVIF image, which Pillow reads from 11.3 on; install that, or {REMEDY}"
    return f"not a {NAMES} image; {REMEDY}"


def _start(file: BinaryIO) -> bytes:
    start = file.read(16)
    file.seek(0)
    return start


def stored_size(file: BinaryIO) -> tuple[int, int] | None:
    """Return width and height of an image from its header, not turned; None for an array.

    Raises:
        BadImage, OutOfResources: as decode().
    """
    if is_array(file):
        return None
    with _open(file) as image:
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


def decode(file: BinaryIO, reduction: int = 1, channels: int = 3) -> Decoded:
    """Decode an image to a number of channels.

    CMYK is read in Adobe's polarity (0 is full ink) in every JPEG, as PIL does and web browsers do.

    Args:
        file: the image.
        reduction: 1, 2, 4 or 8; a JPEG in gray or RGB is decoded at 1 / reduction of its size, any other image in full.
        channels: 1 for gray, 3 for RGB, 4 for RGBA or an array, any other number for an array. An array of 1 or 3
            channels is converted to gray and RGB, too.

    Raises:
        BadImage: it is truncated, of another format, animated, of more than 8 bits a channel, or too large; or it holds
            other channels than those asked for, and is to be converted neither to gray nor to RGB.
        OutOfResources: there is no memory for it now.
    """
    if is_array(file):
        return _decode_array(file, channels)
    with _open(file) as image:
        try:
            if image.format in _QUARANTINED_ANIMATED and getattr(image, "is_animated", False):
                raise BadImage("animated")
            if ";16" in str(image.tile) or image.mode.startswith("I;16"):  # JPEG 2000 has no such tile
                raise BadImage("16 bits per channel; convert it to 8")
            if image.mode in ("I", "F"):
                raise BadImage("32 bits per channel; convert it to 8")
            if getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0) & _PREVIEW:
                raise BadImage("a preview, as in a camera's raw file; convert the photograph to JPEG or PNG")
            if channels not in CONVERTED:
                _refuse_other_channels(image, channels)
            size = image.size
            done = _reduce(image, reduction, CONVERTED.get(channels))
            image.load()
            planes = (_converted(image, CONVERTED[channels]),) if channels in CONVERTED else image.split()
            return Decoded(planes, size, done, orientation_of(image), _is_pils_alone(image))
        except BadImage:
            raise
        except Exception as error:  # a decoder may raise anything on invalid data
            raise BadImage(reason_of(error)) from error


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """Read the header of an image with PIL's plugin for it: Image.open() would swallow why it is refused.

    Raises:
        BadImage: it is of another format, damaged, or too large.
    """
    name = format_of(file)
    if name is None:
        raise BadImage(describe_unknown(file))
    try:
        image = Image.OPEN[name][0](file, "")
    except Exception as error:
        raise BadImage(reason_of(error)) from error
    _refuse_too_large(*image.size)
    return image


def _refuse_too_large(width: int, height: int) -> None:
    if too_large(width, height):
        raise BadImage(f"{width} x {height} pixels, more than --max-pixels {Image.MAX_IMAGE_PIXELS} in all")


def _refuse_other_channels(image: Image.Image, channels: int) -> None:
    """Raise BadImage unless an image holds the channels that are asked for."""
    mode = _AS_STORED.get(channels)
    if image.mode != mode:
        has = f"has {_count(len(image.getbands()))} ({image.mode})"
        takes = f"the encoder takes {channels}{f' ({mode})' if mode else ''}"
        raise BadImage(f"{has}, {takes}; a {ARRAY_SUFFIX} file of uint8 [H, W, {channels}] holds as many")


def _count(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which copies an image of that mode too


def is_array(file: BinaryIO) -> bool:
    """Return whether a file begins as a .npy file."""
    start = file.read(len(npy.MAGIC_PREFIX))
    file.seek(0)
    return start == npy.MAGIC_PREFIX


def _decode_array(file: BinaryIO, channels: int) -> Decoded:
    """Read a .npy file; its header is checked before memory is taken for what it claims.

    Raises:
        BadImage: it is no uint8 array [H, W, C], truncated, or too large.
        OutOfResources: there is no memory for it now.
    """
    try:
        read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
    except Exception as error:  # it parses a line of Python
        raise BadImage(f"not a {ARRAY_SUFFIX} file that can be read ({reason_of(error)})") from error
    if dtype != np.uint8 or len(shape) != 3:
        raise BadImage(f"{dtype} {list(shape)}; {ARRAY_SUFFIX} images are uint8 [H, W, C]")
    height, width, count = shape
    if count != channels and not (count in CONVERTED and channels in CONVERTED):
        raise BadImage(f"has {_count(count)}, the encoder takes {channels}")
    if min(height, width) < 1:
        raise BadImage(f"no pixels in {list(shape)}")
    _refuse_too_large(width, height)
    try:
        start, end = file.tell(), file.seek(0, os.SEEK_END)
        if end - start < height * width * count:
            raise BadImage("truncated")
        file.seek(start)
        values = np.frombuffer(file.read(height * width * count), dtype=np.uint8)
        pixels = values.reshape(shape, order="F" if by_columns else "C")
        if channels in CONVERTED:
            image = Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if count == 1 else pixels))
            planes: tuple[Image.Image, ...] = (_converted(image, CONVERTED[channels]),)
        else:
            planes = tuple(Image.fromarray(np.ascontiguousarray(pixels[:, :, i])) for i in range(count))
    except BadImage:
        raise
    except Exception as error:  # a file of a source of the user's own may raise anything
        raise BadImage(reason_of(error)) from error
    return Decoded(planes, (width, height), 1, UPRIGHT, pil_only=True)


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


def reason_of(error: Exception) -> str:
    """Say in one line why an image is bad, unless that is not its fault."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES):
        raise OutOfResources(f"no file can be read: {str(error) or 'out of memory'}") from error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.DecompressionBombError):
        return f"more than twice as many pixels as --max-pixels {Image.MAX_IMAGE_PIXELS}"
    return " ".join(str(error).split()) or type(error).__name__
