"""The history of a run for its curves: evenly spaced records, at most as many as a picture can show."""

from typing import Any

_LENGTH = 2000  # at most, likewise of evaluations
_EVALUATED = "held_out"  # what the numbers of an evaluation begin with


class History:
    """Keep every logged record or, in longer runs, every second, fourth, ..., and always the latest.

    Those with an evaluation are thinned by themselves: few records have one, and hardly any would be kept.
    """

    def __init__(self) -> None:
        self._all, self._evaluated = _Thinned(), _Thinned()
        self._latest: dict[str, Any] | None = None

    def add(self, record: dict[str, Any]) -> None:
        self._all.add(record)
        if any(name.startswith(_EVALUATED) for name in record):
            self._evaluated.add(record)
        self._latest = record

    def records(self) -> list[dict[str, Any]]:
        """Return the kept records in order."""
        latest = [] if self._latest is None else [self._latest]
        kept = {record["step"]: record for record in (*self._all.kept, *self._evaluated.kept, *latest)}
        return [kept[step] for step in sorted(kept)]


class _Thinned:
    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self._taken, self._stride = 0, 1

    def add(self, record: dict[str, Any]) -> None:
        if self._taken % self._stride == 0:
            self.kept.append(record)
        self._taken += 1
        if len(self.kept) > _LENGTH:
            self.kept, self._stride = self.kept[::2], 2 * self._stride
