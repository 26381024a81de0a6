"""Work done ahead of its use in worker processes, and what becomes of it when one of them dies."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")


# What torch says, and what reading from a process that has just ended gives.
_SIGNS_OF_DEATH = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)


class WorkerDied(RuntimeError):
    """What prepares items has died, at a place from where it can be started again."""


def ahead(
    work: Callable[[int], Item], indices: range, *, workers: int, prefetch: int, pin_memory: bool = False
) -> Iterator[Item]:
    """Yield work(i) for every index, in order, worked out by `workers` processes that hold `prefetch` items each.

    With no workers, the calling process works as items are asked for.

    Raises:
        WorkerDied: a process was killed; the item that is due has not been yielded.
    """
    loader: DataLoader[Any] = DataLoader(
        _Items(work),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_leave_signals_to_the_run,
    )
    with _same_child_signals():
        items = iter(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except _SIGNS_OF_DEATH as error:
            if workers == 0 or str(error).startswith("Caught "):  # by a process that lives: work() raised it
                raise
            raise WorkerDied(" ".join(str(error).split()) or type(error).__name__) from error
        yield item


class _Items(Dataset[Any]):
    def __init__(self, work: Callable[[int], Any]) -> None:
        self._work = work

    def __getitem__(self, index: int) -> Any:
        return self._work(index)


@contextmanager
def _same_child_signals() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD: it raises wherever the program happens to be, in mid-update too.

    Without it a death shows within seconds, where the next item is awaited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # nor does torch install it here
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _leave_signals_to_the_run(worker: int) -> None:
    """Go on through a Ctrl-C, which reaches the whole process group, and end when the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
