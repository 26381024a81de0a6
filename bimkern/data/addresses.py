"""Addresses, of places that fsspec reads: s3://bucket/photos."""

import re
from pathlib import Path

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://.+")
_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]+://?[^/@:\s]*):[^/\s]*@")  # which may have an @ of its own
_SHORTENED = re.compile(r"^([a-z][a-z0-9+.-]+):/(?=[^/])")


def is_address(place: str) -> bool:
    return _ADDRESS.fullmatch(place) is not None


def text_of(path: Path) -> str:
    """Return a path as it was given: of an address, a Path has dropped a slash."""
    return _SHORTENED.sub(r"\1://", str(path))


def without_passwords(text: str) -> str:
    """Return a text with the passwords left out of its addresses, also of those that are paths."""
    return _PASSWORD.sub(r"\1@", text)
