"""Suffixes of names, and names that begin with a dot: of one name, and of all names at once.

Shapes: N names.
"""

import numpy as np
from numpy.typing import NDArray

from bimkern.data.integers import Int64
from bimkern.data.names import Names

NO_SUFFIX = "without suffix"
_LONGEST = 8  # bytes of a suffix that is read with all others at once


def suffix_of(file: str) -> str:
    """Return the suffix of a file's name in lower case, in words if it has none."""
    name = file[file.rfind("/") + 1 :]
    dot = name.rfind(".")  # Path.suffix, of a million files
    return name[dot:].lower() if 0 < dot < len(name) - 1 and name[:dot].strip(".") else NO_SUFFIX


def suffixes_of(names: Names) -> tuple[Int64, list[str]]:
    """Return the suffix of every name, [N], as its number in a list of them."""
    text, starts, ends = np.frombuffer(names.joined, dtype=np.uint8), names.starts, names.ends
    if not len(text):
        return np.zeros(len(names), dtype=np.int64), [NO_SUFFIX] * min(1, len(names))
    base = _last(text, "/", starts, ends) + 1  # where the last part of a path begins
    dot = _last(text, ".", starts, ends)
    has_one = (dot > base) & (dot < ends - 1)
    keys, odd = _keys(text, np.where(has_one, dot, ends), ends)
    odd |= has_one & (text[np.minimum(base, len(text) - 1)] == ord("."))
    found, numbers = np.unique(keys, return_inverse=True)
    suffixes = [key.tobytes().rstrip(b"\0").decode() or NO_SUFFIX for key in found]
    for i in np.flatnonzero(odd).tolist():
        if (suffix := suffix_of(names[i])) not in suffixes:
            suffixes.append(suffix)
        numbers[i] = suffixes.index(suffix)
    return numbers, suffixes


def is_dot_file(file: str) -> bool:
    """Return whether a name, or that of a folder in it, begins with a dot: such files are no data."""
    return file.startswith(".") or "/." in file


def are_dot_files(names: Names) -> NDArray[np.bool_]:
    """Return what is_dot_file returns of every name, [N]."""
    text, starts = np.frombuffer(names.joined, dtype=np.uint8), names.starts
    dots = np.flatnonzero(text == ord("."))
    owners = np.searchsorted(names.ends, dots, side="right")
    first = (dots == starts[owners]) | (text[dots - 1] == ord("/"))
    found = np.zeros(len(names), dtype=bool)
    found[owners[first]] = True
    return found


def _last(text: NDArray[np.uint8], character: str, starts: Int64, ends: Int64) -> Int64:
    """Return where a character last occurs in each part of a text, [N]; one before the part if it does not."""
    places = np.concatenate([[-1], np.flatnonzero(text == ord(character))])
    return np.maximum(places[np.searchsorted(places, ends) - 1], starts - 1)


def _keys(text: NDArray[np.uint8], starts: Int64, ends: Int64) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return parts of a text in lower case as integers, [N], and which of them do not fit or are not ASCII, [N]."""
    keys = np.zeros((len(starts), _LONGEST), dtype=np.uint8)
    odd = ends - starts > _LONGEST
    for i in range(_LONGEST):
        at = starts + i
        inside = (at < ends) & ~odd
        character = np.where(inside, text[np.minimum(at, len(text) - 1)], 0)
        odd |= inside & ((character >= 0x80) | (character == 0))
        keys[:, i] = character + 32 * ((character >= ord("A")) & (character <= ord("Z")))
    keys[odd] = 0
    return keys.view(np.uint64).reshape(-1), odd
