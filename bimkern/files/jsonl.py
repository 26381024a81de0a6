"""Files of JSON objects, one a line, that survive being torn."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """Read all objects; a line that is none, such as one torn by a killed process, is left out."""
    if not path.is_file():
        return []
    return [record for line in path.read_bytes().splitlines() if (record := parse(line)) is not None]


def parse(line: bytes) -> Record | None:
    """Return the object that a line holds; None if it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def append(path: Path, records: Iterable[Record]) -> None:
    """Add objects; a torn line before them is ended first."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.writelines(json.dumps(record).encode() + b"\n" for record in records)


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a whole file in the place of what was there, or nothing."""
    scratch = path.with_name(f".{path.name}")
    scratch.unlink(missing_ok=True)
    append(scratch, records)
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(scratch, path)
