"""The base of all errors that a command may end with, and what they say about an unknown name."""

import difflib
from collections.abc import Iterable


class BimkernError(Exception):
    """An error whose message is the one line that a user needs; a command prints it and ends with its exit code."""

    exit_code: int = 2  # of a mistake in what was asked for, as argument parsers use it
    of_all_ranks: bool = False  # raised by all processes of a run together, so that the first reports it
    reported: bool | None = None  # whether another process reports it; None: that is not settled


class RunError(BimkernError):
    """A run that was asked for correctly cannot continue."""

    exit_code = 1


def closest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint for an unknown name: the known ones that are like it, or else all or other words."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"did you mean {', '.join(close)}?"
    if otherwise:
        return otherwise
    return f"choose one of {', '.join(known)}" if known else "there is none"
