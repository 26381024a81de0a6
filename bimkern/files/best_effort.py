"""Files that a run can do without: what cannot be written is said once, until it can be again."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("bimkern.train")


class Outage:
    """Go on without something; the warning comes once for each time in which it fails."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lasts = False

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Let what is written inside fail."""
        try:
            yield
        except OSError as error:
            if not self._lasts:
                logger.warning("%s cannot be written (%s); training goes on", self._what, error)
            self._lasts = True
        else:
            self._lasts = False
