"""JSON Lines files: one object per line; a torn line is skipped."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bimkern.files import atomic

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """Read all objects; skip lines that hold none, for example one torn by a killed process."""
    return list(stream(path))


def stream(path: Path) -> Iterator[Record]:
    """Yield the objects that read() returns, one at a time: of a million images they would fill the memory."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        yield from (record for line in file if (record := parse(line)) is not None)


def parse(line: bytes) -> Record | None:
    """Return the object in a line, None if there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def append(path: Path, records: Iterable[Record]) -> None:
    """Append objects, after ending a torn line."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.writelines(map(_line, records))


def write(path: Path, records: Iterable[Record]) -> None:
    """Write an atomic file, replacing what was there."""
    with atomic.replaced(path) as scratch:
        scratch.write_bytes(b"".join(map(_line, records)))


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"
