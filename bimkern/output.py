"""What commands print: a run outlives its reader and never waits for it; a command that only prints ends with it."""

import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

_ESCAPED = "backslashreplace"  # how stderr shows what its encoding lacks


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line, at once; it is dropped if the pipe is full, and once the reader is gone all later lines are too.

    Args:
        line: what is printed, without its end.
        stream: where to; None is what sys.stdout is by then.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None or not has_room(stream):
        return
    try:
        print(_printable(line, stream), file=stream, flush=True)
    except BrokenPipeError:
        _give_up(stream)
    except OSError:  # a full disk; the stream keeps the line and tries again with the next
        pass


def _printable(text: str, stream: TextIO) -> str:
    """Return a text that a stream can show: the names of files may have bytes that are none."""
    if getattr(stream, "errors", None) != "strict":
        return text
    return text.encode(stream.encoding, _ESCAPED).decode(stream.encoding)


def _give_up(stream: TextIO) -> None:
    """Drop what a stream holds and gets: it would fail again, at the latest when the program exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def printing() -> Iterator[None]:
    """Let a reader that has seen enough, like `head`, end this process without an error, as it ends other programs.

    Only for what a command prints and then ends. A full disk ends it with one line on stderr. What the encoding lacks
    is escaped, as in say().
    """
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    strict = sys.stdout if getattr(sys.stdout, "errors", None) == "strict" else None
    if isinstance(strict, TextIOWrapper):
        strict.reconfigure(errors=_ESCAPED)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # None: it was closed before the program began
                sys.stdout.flush()
    except OSError as error:
        _give_up(sys.stdout)
        say(f"what is printed cannot be written ({error})", sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGPIPE, before)
        if isinstance(strict, TextIOWrapper):
            strict.reconfigure(errors="strict")


class Warnings(logging.Handler):
    """Say what is logged, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), sys.stderr)


def on_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def has_room(stream: TextIO) -> bool:
    """Return whether a line can be written without waiting for a reader."""
    with suppress(OSError, ValueError):  # it is no file, or closed
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return bool(poll.poll(0))
    return True
