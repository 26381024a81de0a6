"""images.jsonl: the images that a run is trained on, and those held out, one line of JSON each, sorted by name.

A million lines are parsed only if they are others than would be written now: else they say what is known already.
"""

from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from pathlib import Path

import numpy as np

from bimkern.data.file_checks import FileChecks
from bimkern.data.held_out import are_held_out
from bimkern.data.names import Names
from bimkern.files import atomic, jsonl

IMAGES = "images.jsonl"
_LINE = '{"file": %s, "width": %d, "height": %d, "digest": "%s"%s}\n'  # as json.dumps writes it
_HELD_OUT = ', "held_out": true'
_AT_ONCE = 1 << 12  # lines
_DIGITS = 16  # of a digest


def write_records(path: Path, images: FileChecks, held_out: float) -> None:
    """Write the file of a run that holds out a share of its images."""
    with atomic.replaced(path) as scratch, scratch.open("wb") as file:
        file.writelines(_blocks(images, held_out))


def read_records(path: Path, images: FileChecks, held_out: float) -> FileChecks:
    """Read a file: names, sizes and digests.

    Args:
        path: of the file.
        images: that it probably holds.
        held_out: share of them that it probably marks.

    Returns:
        `images` itself if the file holds just these.
    """
    with path.open("rb") as file:
        if all(file.read(len(block)) == block for block in _blocks(images, held_out)) and not file.read(1):
            return images
    found = {one["file"]: (one["width"], one["height"], int(one["digest"], 16)) for one in jsonl.stream(path)}
    names = sorted(found)
    rows = np.array([found[name] for name in names], dtype=object).reshape(-1, 3)
    return FileChecks.recorded(Names.of(names), rows[:, :2].astype(np.int64), rows[:, 2].astype(np.uint64))


def _blocks(images: FileChecks, held_out: float) -> Iterator[bytes]:
    sizes, digests, marked = images.sizes, images.digests.astype(">u8"), are_held_out(images.names, held_out)
    for first in range(0, len(images), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        hexadecimal = digests[some].tobytes().hex()
        lines = zip(
            map(encode_basestring_ascii, images.names[some]),
            *sizes[some].T.tolist(),
            [hexadecimal[i : i + _DIGITS] for i in range(0, len(hexadecimal), _DIGITS)],
            np.where(marked[some], _HELD_OUT, "").tolist(),
            strict=True,
        )
        yield "".join(map(_LINE.__mod__, lines)).encode()
