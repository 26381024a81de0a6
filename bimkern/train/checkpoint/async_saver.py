"""Saving in the background: the loop pays for a copy in memory, a thread for the disk.

The copy takes as many bytes of host memory as the weights and the optimizer's state. It is kept from save to save.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor

from bimkern.train import device as devices
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.pinned_buffer import HostMemory
from bimkern.train.checkpoint.store import Checkpoint, CheckpointError
from bimkern.watchdog import STALLED, Interrupted, Task, Watchdog

logger = logging.getLogger("bimkern.train")

Tensors = dict[str, Tensor]

_PAUSES = (1.0, 3.0)  # seconds before a required save is tried again


class Saver:
    """Write a run's checkpoints, one at a time; leaving the context waits for the last one.

    A KeyboardInterrupt that leaves the context, or arrives while the loop waits, ends a running save: its checkpoint is
    not written, those before it stand. A save that makes no progress is reported; once a stop was requested
    (watchdog.stopped_by), it is given up with Interrupted.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        """Save into a folder, every so many steps (which only the warning of a failed save mentions)."""
        self.best: dict[str, Any] | None = None  # step, loss and conditions of the best checkpoint written
        self.saved_step = 0  # of the newest
        self._folder, self._every = folder, every
        self._memory = HostMemory()
        self._task: Task[object] | None = None
        self._watchdog = Watchdog("a save")
        self._past_files = False  # what is running does what comes after the files of a checkpoint
        self._skip_then = False  # that hung, and so it is not done again
        self._abandoned = threading.Event()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._abandoned.set()
        with suppress(_Abandoned):
            self.wait()

    def reserve(self, model: Tensors, optimizer: Tensors) -> None:
        """Get the memory for copies of such tensors in the background, so that the first save is as short as others."""
        self.wait()
        tensors = [*model.values(), *optimizer.values()]
        self._start(lambda: self._memory.fit(tensors), _gpu(tensors), "getting memory for saves")

    def save(
        self,
        checkpoint: Checkpoint,
        loss: float,
        *,
        conditions: Mapping[str, int] = MappingProxyType({}),
        first: Callable[[], object],
        then: Callable[[], object] = lambda: None,
        required: bool,
    ) -> None:
        """Copy a checkpoint and write it in the background, once the save before it is through.

        Args:
            checkpoint: its tensors may change as soon as this returns; `best` is added to its state.
            loss: the lowest so far makes the checkpoint the best one, and NaN never does.
            conditions: what the loss depends on beside the weights; under others than before, the best is sought anew.
            first: called in the background before anything is written.
            then: called in the background after that.
            required: wait until it is written, and try again. Any other that cannot be written is a warning.

        Raises:
            CheckpointError: it is required and cannot be written.
        """
        self.wait()
        best = self.best
        comparable = best is not None and best == best | dict(conditions)
        if math.isfinite(loss) and (best is None or not comparable or loss < best["loss"]):
            best = {"step": checkpoint.step, "loss": loss} | dict(conditions)
        best_step = best["step"] if best else checkpoint.step
        checkpoint = replace(checkpoint, state={"best": best} | checkpoint.state)
        tensors = [*checkpoint.model.values(), *checkpoint.optimizer.values()]
        gpu, copies = _gpu(tensors), self._memory.copy(tensors)
        written = checkpoint if copies is None else _with_tensors(checkpoint, copies)
        copied = None if gpu is None else devices.recorded(gpu)

        def write() -> None:
            if copied is not None:
                copied.synchronize()
            first()
            try:
                checkpoints.save(self._folder, written, best_step=best_step, between=self._check)
            except CheckpointError as error:
                if required:
                    raise
                logger.warning("%s; training goes on, the next save is after %d steps", error, self._every)
            else:
                self.best, self.saved_step = best, checkpoint.step
            self._check()
            self._past_files = True
            if not self._skip_then:
                then()

        what = f"the save of step {checkpoint.step}"
        if required:
            self._insist(write, gpu, what)
        else:
            self._start(write, gpu, what)
            if copies is None:
                self.wait()

    def _insist(self, write: Callable[[], None], gpu: torch.device | None, what: str) -> None:
        """Write and wait; try again after a while, in which somebody may make room."""
        for pause in (*_PAUSES, None):
            self._start(write, gpu, what)
            try:
                self.wait()
            except CheckpointError as error:
                if pause is None:
                    raise CheckpointError(f"{error}; nothing is saved since step {self.saved_step}") from error
                logger.warning("%s; it is tried again in %g s", error, pause)
                time.sleep(pause)
            else:
                return

    def wait(self) -> None:
        """Wait for what is running in the background, and raise what it raised.

        Raises:
            Interrupted: a stop was requested, and it makes no progress.
        """
        if self._task is None:
            return
        try:
            self._task.result(self._watchdog)
        except KeyboardInterrupt:
            self._abandoned.set()
            self._task.join(STALLED)
            raise
        except Interrupted as hung:
            if self._past_files:
                self._skip_then = True
                logger.warning("%s since its files were written; its pictures are given up", hung)
                return
            self._abandoned.set()
            raise Interrupted(f"{hung}; nothing is saved since step {self.saved_step}") from hung
        finally:
            self._task = None

    def _start(self, task: Callable[[], object], gpu: torch.device | None, what: str) -> None:
        def work() -> None:
            with devices.current(gpu):
                task()

        self._watchdog, self._past_files = Watchdog(what, patient=True), False
        self._task = Task(work, name="bimkern saver")

    def _check(self) -> None:
        self._watchdog.progress()
        if self._abandoned.is_set():
            raise _Abandoned


class _Abandoned(Exception):
    """Nobody waits for this save any more."""


def _gpu(tensors: list[Tensor]) -> torch.device | None:
    return next((tensor.device for tensor in tensors if tensor.is_cuda), None)


def _with_tensors(checkpoint: Checkpoint, tensors: list[Tensor]) -> Checkpoint:
    """Return a checkpoint with other tensors under the same names."""
    rest = iter(tensors)
    model, optimizer = (dict(zip(names, rest, strict=False)) for names in (checkpoint.model, checkpoint.optimizer))
    return replace(checkpoint, model=model, optimizer=optimizer)
