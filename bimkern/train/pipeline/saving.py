"""Checkpoints of a network that no rank holds: rank 0 writes, and the others hand out theirs, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bimkern.distributed.point_to_point import Lines
from bimkern.distributed.ranks import Group
from bimkern.train import device as devices
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.checkpoint.pinned_buffer import PinnedBuffer
from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.checkpoint.streamed import Streamed, read
from bimkern.train.loop.unwritten import Unsaved
from bimkern.train.pipeline.agreement import StageFailed
from bimkern.watchdog import BackgroundTask, Watchdog

_DONE = -1


class GatheringSaver(AsyncSaver):
    """The saver of rank 0: it holds its own tensors and one of another rank at a time."""

    def __init__(self, folder: Path, *, every: int, ranks: Group, lines: Lines) -> None:
        super().__init__(folder, every=every)
        self._ranks, self._lines = ranks, lines
        self._asking = False  # other ranks wait to be asked for tensors

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, at)
        finally:
            self._let_go()

    def save(self, checkpoint: Checkpoint, loss: float, **options: Any) -> None:
        self.wait()
        parts: dict[str, dict[str, Any]] = {"model": dict(checkpoint.model), "optimizer": dict(checkpoint.optimizer)}
        for rank, theirs in enumerate(self._ranks.all_gather_object([])):
            for index, (part, name, shape, dtype) in enumerate(theirs):
                like = torch.Size(shape), getattr(torch, dtype)
                parts[part][name] = Streamed(*like, partial(self._fetch, rank, index, *like), live=False)
        self._asking = True
        try:
            super().save(replace(checkpoint, model=parts["model"], optimizer=parts["optimizer"]), loss, **options)
        finally:
            if options["required"]:
                self._let_go()

    def wait(self) -> None:
        try:
            super().wait()
        finally:
            self._let_go()

    def _fetch(self, rank: int, index: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self._lines.send(torch.tensor([index]), rank)
        return self._lines.receive(torch.empty(shape, dtype=dtype), rank)

    def _release(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """Let the other ranks forget their copies."""
        if self._asking:
            self._asking = False
            for rank in range(1, self._ranks.size):
                self._lines.send(torch.tensor([_DONE]), rank)


class ServingSaver(Unsaved):
    """The saver of any other rank: it copies its tensors, and hands them out while training continues."""

    def __init__(self, ranks: Group, lines: Lines) -> None:
        super().__init__()
        self._ranks, self._lines = ranks, lines
        self._buffer = PinnedBuffer()
        self._task: BackgroundTask[None] | None = None

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.wait()

    def reserve(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        if not self._buffer.allocate([*model.values(), *optimizer.values()]):
            raise StageFailed(f"rank {self._ranks.rank}: the host has no memory for a copy of its stage, to be saved")

    def save(self, checkpoint: Checkpoint, loss: float, **options: Any) -> None:
        self.wait()
        parts = {"model": checkpoint.model, "optimizer": checkpoint.optimizer}
        named = [(part, name, read(tensor)) for part, tensors in parts.items() for name, tensor in tensors.items()]
        copies = self._buffer.copy([tensor for *_, tensor in named])
        assert copies is not None  # reserve() has had the memory
        gpu = next((tensor.device for *_, tensor in named if tensor.is_cuda), None)
        copied = None if gpu is None else devices.recorded(gpu)
        self._ranks.all_gather_object(
            [[part, name, [*t.shape], str(t.dtype).removeprefix("torch.")] for part, name, t in named]
        )

        def serve() -> None:
            if copied is not None:
                copied.synchronize()
            while (index := int(self._lines.receive(torch.empty(1, dtype=torch.int64), 0))) != _DONE:
                self._lines.send(copies[index], 0)

        self._task = BackgroundTask(serve, name="bimkern saver")
        if options["required"]:
            self.wait()

    def wait(self) -> None:
        """Wait until rank 0 has written, or given up."""
        if self._task is not None:
            task, self._task = self._task, None
            task.result(Watchdog("the save of the other stages", patient=True))
