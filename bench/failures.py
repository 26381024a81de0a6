"""Failures of cases: each is reported in one line, and the other cases continue."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench.refcheck import WrongResult
from bench.results import ResultsError


class Failures:
    """How many there were."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def said(self, what: str) -> Iterator[None]:
        """Turn an exception into a line on stderr; one of the results file is raised, as every case would meet it."""
        try:
            yield
        except ResultsError:
            raise
        except WrongResult as error:
            self.add(f"wrong result: {error}")
        except Exception as error:  # whatever a rival, a compiler or a driver throws
            first, *_ = str(error).strip().splitlines() or [""]
            self.add(f"{what}: {type(error).__name__}: {first}")

    def add(self, message: str) -> None:
        self.count += 1
        print(f"bench: {message}", file=sys.stderr, flush=True)
