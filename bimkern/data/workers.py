"""Worker processes that prepare items ahead of their use.

Jobs go to all workers through one pipe, results come back through one pipe for each. Nothing lies in /dev/shm, which is
64 MB in a container by default, and no thread stands between a worker and its pipe: what goes wrong with an item comes
back as its error, and a pipe that ends is a worker that died.
"""

import gc
import multiprocessing.connection
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import islice
from multiprocessing.context import ForkProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from bimkern.watchdog import Watchdog, watched

Item = TypeVar("Item")

_SIZE = 8  # bytes of a job and of a message's length; a pipe never tears so few
_CHUNK = 2**16
_REAPED = 3.0  # seconds that killed workers are waited for


class WorkerDied(RuntimeError):
    """What prepares items has died, at a place from where it can be started again."""


def ahead(
    work: Callable[[int], Item],
    jobs: Iterable[int],
    *,
    workers: int,
    prefetch: int,
    in_order: bool = True,
    what: str = "the loader",
) -> Generator[Item, None, None]:
    """Yield work(job) for every job, worked out by `workers` processes that hold `prefetch` items each.

    Args:
        work: runs in forked processes, and so need not be picklable. What it returns goes through a pipe: it is small
            and holds no tensor.
        jobs: numbers in [0, 2**63), each another. `workers * prefetch` are taken at the start, and one more whenever
            an item is about to be yielded.
        workers: processes; with 0 a thread of this process works, when an item is asked for.
        prefetch: items that a worker has ready or works on.
        in_order: yield items in the order of their jobs, not as they come.
        what: a noun for messages.

    Raises:
        WorkerDied: a process was killed; the item that is due has not been yielded.
        Interrupted: a stop was requested while an item was awaited.
    """
    watchdog = Watchdog(what)
    if workers == 0:
        yield from watched(map(work, jobs), watchdog)
        return
    jobs, due = iter(jobs), deque[int]()
    results: dict[int, _Result] = {}
    with closing(_Pool(work, workers)) as pool:

        def ask(count: int) -> None:
            taken = list(islice(jobs, count))
            due.extend(taken)
            pool.ask(taken)

        ask(workers * prefetch)
        while due:
            while not (due[0] in results if in_order else results):
                results |= pool.receive(watchdog)
            job = due[0] if in_order else next(iter(results))
            due.remove(job)
            result = results.pop(job)
            if result.error is not None:
                raise result.error
            ask(1)
            yield result.item


class _Result:
    """What came of a job."""

    def __init__(self, item: Any = None, error: Exception | None = None) -> None:
        self.item, self.error = item, error


class _Pool:
    """Processes that take jobs as they get to them."""

    def __init__(self, work: Callable[[int], Any], count: int) -> None:
        self._jobs, self._asked = os.pipe()
        os.set_blocking(self._asked, False)
        self._waiting: deque[int] = deque()  # jobs that the pipe had no room for
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker(work, self._jobs, self._asked))
        except OSError as error:
            self.close()
            raise WorkerDied(f"no worker process can be started ({error}); fewer workers need less") from error

    def ask(self, jobs: Iterable[int]) -> None:
        """Queue jobs; this never waits."""
        self._waiting.extend(jobs)
        with suppress(BlockingIOError):  # the rest follows as jobs are taken
            while self._waiting:
                os.write(self._asked, self._waiting[0].to_bytes(_SIZE))
                self._waiting.popleft()

    def receive(self, watchdog: Watchdog) -> dict[int, _Result]:
        """Wait for results.

        Raises:
            WorkerDied: instead of results there was the end of a pipe.
            Interrupted: a stop was requested.
        """
        self.ask(())
        ready: list[Any] = []
        workers = {worker.fileno(): worker for worker in self._workers}

        def poll(seconds: float) -> bool:
            ready[:] = multiprocessing.connection.wait(workers, seconds)
            return bool(ready)

        watchdog.wait(poll)
        return {job: result for results in ready for job, result in workers[results].read()}

    def close(self) -> None:
        """End the workers, in whatever state they are."""
        os.close(self._asked)
        os.close(self._jobs)
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
            os.close(worker.fileno())


class _Worker(ForkProcess):
    """A process that works, and the end of its pipe that results are read from."""

    def __init__(self, work: Callable[[int], Any], jobs: int, asked: int) -> None:
        super().__init__(name="bimkern worker", daemon=True)
        self._work, self._jobs, self._asked = work, jobs, asked
        self._received = bytearray()
        self._killed: float | None = None
        self._results, self._answers = os.pipe()
        # Ctrl-C, and some schedulers' SIGTERM, reach every process of a run, which then wants to end by itself.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self.start()
        except OSError:
            os.close(self._results)
            raise
        finally:
            os.close(self._answers)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a handler may raise here

    def run(self) -> None:
        """Work, in the process, until there is no other process left that could ask for more or read results."""
        gc.freeze()  # what is garbage by now may wait, when it is collected, for threads that this process lacks
        os.close(self._results)
        os.close(self._asked)
        with suppress(BrokenPipeError):
            while job := os.read(self._jobs, _SIZE):
                message = self._answer(int.from_bytes(job))
                rest = memoryview(len(message).to_bytes(_SIZE) + message)
                while rest:
                    rest = rest[os.write(self._answers, rest) :]

    def _answer(self, job: int) -> bytes:
        try:
            return bytes(ForkingPickler.dumps((job, _Result(self._work(job)))))
        except Exception as error:
            return bytes(ForkingPickler.dumps((job, _Result(error=_portable(error)))))

    def fileno(self) -> int:
        return self._results

    def read(self) -> Iterator[tuple[int, _Result]]:
        """Yield the results that have come in whole; to be called when there is something to read.

        Raises:
            WorkerDied: it has.
        """
        chunk = os.read(self._results, _CHUNK)
        if not chunk:
            self.join(_REAPED)
            raise WorkerDied(f"worker process {self.pid} {_ending(self.exitcode)}; fewer workers need less memory")
        self._received += chunk
        while len(self._received) >= (end := _SIZE + int.from_bytes(self._received[:_SIZE])):
            yield ForkingPickler.loads(self._received[_SIZE:end])
            del self._received[:end]

    def kill(self) -> None:
        super().kill()
        if self._killed is None:
            self._killed = time.monotonic()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end; without a limit, as multiprocessing does when the program exits, after bringing it about.

        A process in a system call that hangs may live on: it is not waited for long.
        """
        if timeout is None:
            self.kill()
            assert self._killed is not None
            timeout = max(0.0, self._killed + _REAPED - time.monotonic())
        super().join(timeout)


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent, with the traceback as a note."""
    try:
        error.add_note(traceback.format_exc())
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "closed its pipe"
    return f"was ended by {signal_name(-exit_code)}" if exit_code < 0 else f"ended with exit code {exit_code}"


def signal_name(number: int) -> str:
    """Return the name of a signal; most of the real-time ones have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
