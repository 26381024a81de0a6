"""Best-effort writes: a run continues without them, and a series of failures is reported once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("bimkern.train")


class BestEffort:
    """Writes that may fail; the first failure after a success is logged as a warning."""

    def __init__(self, what: str, errors: type[Exception] = OSError) -> None:
        """Write `what`, a noun for messages; `errors` are what a failure raises."""
        self._what, self._errors = what, errors
        self._failing = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Suppress an error from the writes inside."""
        try:
            yield
        except self._errors as error:
            if not self._failing:
                reason = " ".join(str(error).split()) or type(error).__name__
                logger.warning("%s cannot be written (%s); training continues", self._what, reason)
            self._failing = True
        else:
            self._failing = False
