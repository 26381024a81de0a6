"""Sizes in words: bytes as people read and write them."""

import re

_POWERS = {unit: 1024**power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))}


def human_bytes(count: float) -> str:
    """Return a number of bytes in the largest unit up to GiB that keeps it at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def parse_bytes(text: str) -> int:
    """Read a size such as 24GiB.

    Raises:
        ValueError: it is not a number followed by a unit; the message names the units.
    """
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(_POWERS)})", text)
    if found is None:
        raise ValueError(f"must be a number of {', '.join(_POWERS)}, like 24GiB, got {text!r}")
    return int(float(found[1]) * _POWERS[found[2]])
