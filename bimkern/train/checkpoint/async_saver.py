"""Asynchronous checkpoints: the training loop copies tensors to host memory, a thread writes them to disk.

The copy takes as much host memory as the weights and the optimizer's state, and is reused by every save.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor

from bimkern.train import device as devices
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.pinned_buffer import PinnedBuffer
from bimkern.train.checkpoint.store import Checkpoint, CheckpointError
from bimkern.train.checkpoint.streamed import Streamed, is_live
from bimkern.watchdog import STALLED, BackgroundTask, Interrupted, Watchdog

logger = logging.getLogger("bimkern.train")

Tensors = Mapping[str, Tensor | Streamed]

_PAUSES = (1.0, 3.0)  # seconds before a required save is retried


class AsyncSaver:
    """Write the checkpoints of a run, one at a time; leaving the context waits for the last one.

    A KeyboardInterrupt that leaves the context, or arrives during a wait, cancels the running save and keeps the
    checkpoints before it. A save without progress is reported; after a stop was requested (watchdog.stopped_by), it is
    abandoned with Interrupted.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        """Save to a folder, every so many steps (used only in the warning about a failed save)."""
        self.best: dict[str, Any] | None = None  # step, loss and conditions of the best checkpoint written
        self.saved_step = 0  # step of the newest checkpoint written
        self._folder, self._every = folder, every
        self._buffer = PinnedBuffer()
        self._task: BackgroundTask[object] | None = None
        self._watchdog = Watchdog("a save")
        self._files_done = False  # the running save has written its files and calls `then`
        self._skip_then = False  # an earlier `then` hung
        self._canceled = threading.Event()
        self._written: SimpleQueue[tuple[int, Path]] = SimpleQueue()

    def __enter__(self) -> "AsyncSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._canceled.set()
        with suppress(_Canceled):
            self.wait()

    def reserve(self, model: Tensors, optimizer: Tensors) -> None:
        """Allocate host memory for such tensors in the background, so that the first save is as fast as the others.

        Where some are streamed live, nothing will be copied.
        """
        self.wait()
        tensors = _to_copy([*model.values(), *optimizer.values()])
        if tensors is None:
            return
        self._start(lambda: self._buffer.allocate(tensors), _gpu(tensors), "allocating memory for checkpoints")

    def save(
        self,
        checkpoint: Checkpoint,
        loss: float,
        *,
        conditions: Mapping[str, int | str] = MappingProxyType({}),
        first: Callable[[], object],
        then: Callable[[], object] = lambda: None,
        required: bool,
    ) -> None:
        """Copy a checkpoint and write it in the background, after the previous save has finished.

        Args:
            checkpoint: its tensors may be modified once this returns; `best` is added to its state. What is streamed
                is read whenever it is written; where some of it is live, nothing is copied, and this returns after it.
            loss: the lowest so far makes this the best checkpoint; NaN never does.
            conditions: what the loss depends on besides the weights; only losses under the same ones compare.
            first: called in the background before the files are written.
            then: called in the background after they are written, or could not be.
            required: wait until it is written, and retry on failure. Failure of any other save is a warning.

        Raises:
            CheckpointError: the checkpoint is required and cannot be written.
        """
        self._join()
        best = self.best
        comparable = best is not None and best == best | dict(conditions)
        if math.isfinite(loss) and (best is None or not comparable or loss < best["loss"]):
            best = {"step": checkpoint.step, "loss": loss} | dict(conditions)
        best_step = best["step"] if best else checkpoint.step
        checkpoint = replace(checkpoint, state={"best": best} | checkpoint.state)
        tensors = _to_copy([*checkpoint.model.values(), *checkpoint.optimizer.values()])
        gpu = _gpu([*checkpoint.model.values()] if tensors is None else tensors)
        copies = None if tensors is None else self._buffer.copy(tensors)
        written = checkpoint if copies is None else _with_tensors(checkpoint, copies)
        copied = None if gpu is None else devices.recorded(gpu)
        what = f"the save of step {checkpoint.step}"

        def write() -> None:
            if copied is not None:
                copied.synchronize()
            first()
            try:
                checkpoints.save(self._folder, written, best_step=best_step, between=self._check)
            except CheckpointError as error:
                if required:
                    raise
                logger.warning("%s; training continues, the next save is after %d steps", error, self._every)
            else:
                self.best, self.saved_step = best, checkpoint.step
            if not required:
                self._release()
            self._check()
            self._files_done = True
            if not self._skip_then:
                try:
                    then()
                except Exception as error:  # a run does not end because of a picture
                    logger.warning("what follows %s failed (%s: %s)", what, type(error).__name__, error)
            if self.saved_step == checkpoint.step:
                self._written.put((checkpoint.step, checkpoints.path_of(self._folder, checkpoint.step)))

        if required:
            self._save_with_retries(write, gpu, what)
        else:
            self._start(write, gpu, what)
            if copies is None:
                self._join()

    def _save_with_retries(self, write: Callable[[], None], gpu: torch.device | None, what: str) -> None:
        """Write and wait; retry after pauses, in which disk space may be freed."""
        for pause in (*_PAUSES, None):
            self._start(write, gpu, what)
            try:
                self._join()
            except CheckpointError as error:
                if pause is None:
                    raise CheckpointError(f"{error}; nothing saved since step {self.saved_step}") from error
                logger.warning("%s; retrying in %g s", error, pause)
                time.sleep(pause)
            else:
                return

    def _release(self) -> None:
        """Let go, in the background, of what the files of a save were written from."""

    def written(self) -> list[tuple[int, Path]]:
        """Return the steps and paths of the checkpoints that were written, and for which `then` ended, since last."""
        return [self._written.get() for _ in range(self._written.qsize())]

    def wait(self) -> None:
        """Wait for the background task, and raise its error.

        Raises:
            Interrupted: a stop was requested, and the task makes no progress.
        """
        self._join()

    def _join(self) -> None:
        if self._task is None:
            return
        try:
            self._task.result(self._watchdog)
        except KeyboardInterrupt:
            self._canceled.set()
            self._task.join(STALLED)
            raise
        except Interrupted as hung:
            if self._files_done:
                self._skip_then = True
                logger.warning("%s since its files were written; its pictures are abandoned", hung)
                return
            self._canceled.set()
            raise Interrupted(f"{hung}; nothing saved since step {self.saved_step}") from hung
        finally:
            self._task = None

    def _start(self, task: Callable[[], object], gpu: torch.device | None, what: str) -> None:
        def work() -> None:
            with devices.current(gpu):
                task()

        self._watchdog, self._files_done = Watchdog(what, patient=True), False
        self._task = BackgroundTask(work, name="bimkern saver")

    def _check(self) -> None:
        self._watchdog.progress()
        if self._canceled.is_set():
            raise _Canceled


class _Canceled(Exception):
    """The save was canceled."""


def _to_copy(tensors: list[Tensor | Streamed]) -> list[Tensor] | None:
    """Return the tensors that training may change while others are written, None where it has to wait for some."""
    if any(map(is_live, tensors)):
        return None
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def _gpu(tensors: Iterable[Tensor | Streamed]) -> torch.device | None:
    return next((tensor.device for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_cuda), None)


def _with_tensors(checkpoint: Checkpoint, tensors: list[Tensor]) -> Checkpoint:
    """Return the checkpoint with its tensors replaced, in order, but for what is streamed."""
    rest = iter(tensors)
    model, optimizer = (
        {name: next(rest) if isinstance(value, Tensor) else value for name, value in values.items()}
        for values in (checkpoint.model, checkpoint.optimizer)
    )
    return replace(checkpoint, model=model, optimizer=optimizer)
