"""Why a file is no image: by its suffix or, if that is unknown, by its first bytes."""

from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from bimkern.data.formats import (
    ARRAY_SUFFIX,
    OTHER_SUFFIXES,
    SUFFIXES,
    BadImage,
    describe_unknown,
    is_image,
)
from bimkern.data.names import Names
from bimkern.data.reasons import Reasons, reasons_by_suffix
from bimkern.data.suffixes import suffix_of

NO_IMAGE = "not opened, as its suffix is not that of an image"
_BY_SUFFIX = {**dict.fromkeys(OTHER_SUFFIXES, NO_IMAGE), **dict.fromkeys((*SUFFIXES, ARRAY_SUFFIX))}


def is_known(file: str) -> bool:
    """Return whether the suffix of a file says whether it is an image."""
    return suffix_of(file) in _BY_SUFFIX


def has_image_suffix(file: str) -> bool:
    return _BY_SUFFIX.get(suffix_of(file), NO_IMAGE) is None


def why_skipped(file: str, open_it: Callable[[], BinaryIO]) -> str | None:
    """Return why a file is skipped, None for an image: by its suffix or, if that is unknown, by its first bytes.

    Raises:
        OutOfResources: no file can be read now.
    """
    suffix = suffix_of(file)
    return _BY_SUFFIX[suffix] if suffix in _BY_SUFFIX else _why_unlike(open_it)


def why_each_skipped(files: Names, open_it: Callable[[str], BinaryIO]) -> Reasons:
    """Return what why_skipped returns of each of the files, which ascend.

    Raises:
        OutOfResources: no file can be read now.
    """
    return reasons_by_suffix(files, _BY_SUFFIX, lambda file: _why_unlike(partial(open_it, file)))


def _why_unlike(open_it: Callable[[], BinaryIO]) -> str | None:
    """Return why the first bytes of a file are not those of an image."""
    try:
        with open_it() as opened:
            return None if is_image(opened) else describe_unknown(opened)
    except BadImage as error:
        return str(error)
