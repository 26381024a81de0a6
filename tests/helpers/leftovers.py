"""What a test started and did not see to its end, for example because it failed, ends with the test.

A worker of pytest would otherwise wait for it for ever when it exits.
"""

from collections.abc import Callable

_ends: list[Callable[[], None]] = []


def add(end: Callable[[], None]) -> None:
    """Have something called when the current test is over; it does nothing where nothing is left."""
    _ends.append(end)


def end_all() -> None:
    while _ends:
        _ends.pop()()
