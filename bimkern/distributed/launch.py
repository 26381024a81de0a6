"""What torchrun says of this process, in its variables."""

import os

from bimkern.errors import BimkernError


class RanksError(BimkernError, ValueError):
    """The ranks of a run cannot come together; the message gives the reason and the remedy."""


def world_size() -> int:
    """Return how many ranks torchrun started.

    Raises:
        RanksError: WORLD_SIZE is no number of them.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise RanksError(f"WORLD_SIZE must be a number of ranks, got {size!r}; unset it, or start with torchrun")
    return int(size)


def is_launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def env_rank() -> int:
    """Return the rank that torchrun gave to this process, 0 without torchrun."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and is_launched() else 0


def local_world_size() -> int:
    """Return how many processes torchrun started on this machine, 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def local_rank() -> int:
    """Return which of this machine's ranks this process is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0
