"""Saving in the background: the loop pays for a copy in memory, a thread for the disk.

The copy takes as many bytes of host memory as the weights and the optimizer's state. It is kept from save to save,
since pages that are new to the process cost many times the copy.
"""

import ctypes
import logging
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bimkern.train import checkpoint as checkpoints
from bimkern.train.checkpoint import Checkpoint, CheckpointError

logger = logging.getLogger("bimkern.train")

Tensors = dict[str, Tensor]


class Saver:
    """Write a run's checkpoints, one at a time; leaving the context waits for the last one.

    A KeyboardInterrupt that leaves the context, or arrives while the loop waits, ends a running save: its checkpoint is
    not written, those before it stand.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        """Save into a folder, every so many steps (which only the warning of a failed save mentions)."""
        self.best: dict[str, Any] | None = None  # step and loss of the best checkpoint that was written
        self._folder, self._every = folder, every
        self._model: Tensors = {}
        self._optimizer: Tensors = {}
        self._work: _Work | None = None
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
        self._start(lambda: self._fit(model, optimizer))

    def save(self, checkpoint: Checkpoint, loss: float, *, first: Callable[[], object], required: bool) -> None:
        """Copy a checkpoint and write it in the background, once the save before it is through.

        Args:
            checkpoint: its tensors may change as soon as this returns; `best` is added to its state.
            loss: the lowest so far makes the checkpoint the best one.
            first: called in the background before anything is written.
            required: wait until it is written. Any other that cannot be written is a warning.

        Raises:
            CheckpointError: it is required and cannot be written.
        """
        self.wait()
        best = self.best
        if math.isfinite(loss) and (best is None or loss < best["loss"]):
            best = {"step": checkpoint.step, "loss": loss}
        copied = self._copy(checkpoint.model, checkpoint.optimizer)
        copy = Checkpoint(checkpoint.step, self._model, self._optimizer, {"best": best} | checkpoint.state)

        def write() -> None:
            if copied is not None:
                copied.synchronize()
            first()
            try:
                best_step = best["step"] if best else copy.step
                checkpoints.save(self._folder, copy, best_step=best_step, between=self._check)
            except CheckpointError as error:
                if required:
                    raise
                logger.warning("%s; training goes on, the next save is after %d steps", error, self._every)
            else:
                self.best = best

        self._start(write)
        if required:
            self.wait()

    def wait(self) -> None:
        """Wait for what is running in the background, and raise what it raised."""
        if self._work is None:
            return
        try:
            self._work.join()
        except KeyboardInterrupt:
            self._abandoned.set()
            self._work.join()
            raise
        error, self._work = self._work.error, None
        if error is not None:
            raise error

    def _start(self, task: Callable[[], None]) -> None:
        self._work = _Work(task)
        self._work.start()

    def _copy(self, model: Tensors, optimizer: Tensors) -> torch.cuda.Event | None:
        """Copy tensors into the buffers; return what to wait for where a GPU still has to do it, in its order."""
        self._fit(model, optimizer)
        for buffers, tensors in ((self._model, model), (self._optimizer, optimizer)):
            for name, tensor in tensors.items():
                buffers[name].copy_(tensor, non_blocking=True)
        if not any(tensor.is_cuda for tensor in model.values()):
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _fit(self, model: Tensors, optimizer: Tensors) -> None:
        """Make the buffers such that these tensors can be copied into them."""
        for buffers, tensors in ((self._model, model), (self._optimizer, optimizer)):
            for gone in buffers.keys() - tensors.keys():
                del buffers[gone]
            for name, tensor in tensors.items():
                buffer = buffers.get(name)
                if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                    self._check()
                    buffers[name] = _host_memory(tensor)

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned


class _Abandoned(Exception):
    """Nobody waits for this save any more."""


class _Work(threading.Thread):
    """A task in the background; what it raised is kept."""

    def __init__(self, task: Callable[[], None]) -> None:
        super().__init__(name="bimkern saver", daemon=True)
        self.error: BaseException | None = None
        self._task = task

    def run(self) -> None:
        try:
            self._task()
        except BaseException as error:
            self.error = error


def _host_memory(tensor: Tensor) -> Tensor:
    """Return memory of the tensor's shape on the host, whose pages the process already has."""
    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    if not tensor.is_cuda:
        # Neither torch's threads nor the interpreter's lock are taken from the loop.
        ctypes.memset(buffer.data_ptr(), 0, buffer.nbytes)
    return buffer
