"""Best-effort writes: a run continues without them, and a series of failures is reported once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("bimkern.train")


class BestEffort:
    """Writes that may fail; the first failure after a success is logged as a warning."""

    def __init__(self, what: str) -> None:
        """Write `what`, a noun for messages."""
        self._what = what
        self._failing = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Suppress an OSError from the writes inside."""
        try:
            yield
        except OSError as error:
            if not self._failing:
                logger.warning("%s cannot be written (%s); training continues", self._what, error)
            self._failing = True
        else:
            self._failing = False
