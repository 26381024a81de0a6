"""Paths that are no UTF-8, as a file system allows: safetensors opens none of them."""

from pathlib import Path

WHY_NOT = "its path is not UTF-8, and safetensors opens no such file; rename it"


def is_utf8(path: Path) -> bool:
    """Return whether a path, as it is given, is UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
