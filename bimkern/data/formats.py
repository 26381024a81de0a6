"""Image files: the formats that are read, by content and not by name, and why a file is none."""

import errno
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile

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
START_BYTES = 16  # of a file, which tell its format
MAX_PIXELS = 89_478_485  # of an image, by default: Pillow's own limit

# PIL would also run Ghostscript on a disguised EPS.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # in the first box of a file
_AVIF_BRANDS = (b"avif", b"avis")
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class BadImage(Exception):
    """A file is nothing to train on; the message says why."""


class OutOfResources(RuntimeError):
    """This process cannot read any file now, for want of memory or file handles."""


def allow_pixels(limit: int) -> None:
    """Let images of up to so many pixels be decoded by this process: it is PIL's setting, which is global."""
    Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def blamed_on_image() -> Iterator[None]:
    """Raise BadImage for every error inside but OutOfResources: decoders and a user's own files may raise anything."""
    try:
        yield
    except (BadImage, OutOfResources):
        raise
    except Exception as error:
        raise BadImage(reason_of(error)) from error


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
    with blamed_on_image():
        return format_of(file) is not None


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
    start = file.read(START_BYTES)
    file.seek(0)
    return start


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """Read the header of an image with PIL's plugin for it: Image.open() would swallow why it is refused.

    Raises:
        BadImage: it is of another format, or too large.
        Exception: whatever the plugin raises, if it is damaged (blamed_on_image).
    """
    name = format_of(file)
    if name is None:
        raise BadImage(describe_unknown(file))
    image = Image.OPEN[name][0](file, "")
    refuse_too_large(*image.size)
    return image


def refuse_too_large(width: int, height: int) -> None:
    """Raise BadImage if an image has more pixels than are allowed."""
    if too_large(width, height):
        raise BadImage(f"{width} x {height} pixels, more than --max-pixels {Image.MAX_IMAGE_PIXELS} in all")


def is_shortage(error: BaseException | None) -> bool:
    """Return whether an error says that this process lacks memory or file handles."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES)


def reason_of(error: Exception) -> str:
    """Say in one line why an image is bad, unless that is not its fault."""
    if is_shortage(error):
        raise OutOfResources(f"no file can be read: {str(error) or 'out of memory'}") from error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.DecompressionBombError):
        return f"more than twice as many pixels as --max-pixels {Image.MAX_IMAGE_PIXELS}"
    return " ".join(str(error).split()) or type(error).__name__
