"""Tables of counted memory traffic: what a row is, how a table is kept, and how far another count may be from it."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any, ClassVar, TypeVar

SECTOR = 32  # bytes
TOLERANCE = 0.05


class Row:
    """Base of the dataclasses of rows: words name a case, whole numbers are its counts."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    ideal_bytes: int  # that must be moved at least

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(getattr(self, f.name) for f in fields(self) if f.type is str)

    @property
    def counts(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}

    def ratio(self, sectors: int) -> float:
        """Return sectors as bytes, over the ideal."""
        return sectors * SECTOR / self.ideal_bytes


R = TypeVar("R", bound=Row)


def columns(kind: type[Row]) -> list[str]:
    return [f.name.rstrip("_") for f in fields(kind)]


def written(kind: type[Row], rows: Iterable[Row]) -> str:
    """Write rows as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns(kind))
    writer.writerows(astuple(row) for row in rows)
    return file.getvalue()


def read(kind: type[R], text: str) -> list[R]:
    """Read rows from CSV."""
    header, *lines = csv.reader(io.StringIO(text))
    assert header == columns(kind), f"the table has other columns than this version writes: {header}"
    return [
        kind(**{f.name: int(cell) if f.type is int else cell for f, cell in zip(fields(kind), line, strict=True)})
        for line in lines
    ]


def differences(found: Iterable[Row], held: Iterable[Row]) -> list[str]:
    """Name the counts that differ from the table by more than the tolerance, and rows that one of them lacks."""
    now, before = {row.key: row for row in found}, {row.key: row for row in held}
    texts = [f"{' '.join(key)}: not in the table" for key in now.keys() - before.keys()]
    texts += [f"{' '.join(key)}: not counted any more" for key in before.keys() - now.keys()]
    for key in now.keys() & before.keys():
        for name, count in now[key].counts.items():
            expected = before[key].counts[name]
            if abs(count - expected) > TOLERANCE * expected:
                texts.append(f"{' '.join(key)}: {name} {expected} -> {count}")
    return sorted(texts)
