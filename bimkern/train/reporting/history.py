"""The history of a run for its curves: evenly spaced records, at most as many as a picture can show."""

from typing import Any

_LENGTH = 2000  # at most


class History:
    """Keep every logged record or, in longer runs, every second, fourth, ..., and always the latest."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []
        self._latest: dict[str, Any] | None = None
        self._taken, self._stride = 0, 1

    def add(self, record: dict[str, Any]) -> None:
        if self._taken % self._stride == 0:
            self._kept.append(record)
        self._taken, self._latest = self._taken + 1, record
        if len(self._kept) > _LENGTH:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def records(self) -> list[dict[str, Any]]:
        """Return the kept records in order."""
        last = [] if self._latest is None or self._kept[-1] is self._latest else [self._latest]
        return self._kept + last
