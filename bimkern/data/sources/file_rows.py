"""The rows of one file, on disk or at an address, as parts of a source."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bimkern import optional
from bimkern.data.source import SourceError


@contextmanager
def errors_of(place: str) -> Iterator[None]:
    """Turn what the library of a format raises into a SourceError that names the file."""
    try:
        yield
    except (SourceError, optional.Unusable):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or optional.first_line(error)
        raise SourceError(f"{place} cannot be read ({reason})") from error


class FileRows:
    """Rows of a file, which are unchanged as long as the file is."""

    def __init__(self, place: str, rows: Any, stat: Callable[[], tuple[int, int]]) -> None:
        """Take path or address, the rows, and a function that returns bytes and time of change (ns)."""
        self._place, self._rows, self._stat = place, rows, stat
        self.survives_fork = getattr(rows, "survives_fork", False)
        self.dtype = getattr(rows, "dtype", None)
        self._key: str | None = getattr(rows, "key", None)
        if hasattr(rows, "label"):
            self.label = self._label

    def __len__(self) -> int:
        return len(self._rows)

    def names(self) -> list[str]:
        with errors_of(self._place):
            names: list[str] = getattr(self._rows, "names", list)()
            return names

    def read(self, i: int) -> Any:
        return self._rows.read(i)

    def stat(self, i: int) -> tuple[int, int]:
        return self._stat()

    def origin(self, i: int) -> tuple[str, str | None, int]:
        """Return what tells a row from all others: its file, the array or column in that, and its number there."""
        return self._place, self._key, i

    def _label(self, i: int) -> str | None:
        with errors_of(self._place):
            label: str | None = self._rows.label(i)
            return label
