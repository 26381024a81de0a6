"""How the ranks of a run share its work: here, every rank has the whole network, and a share of every step's images."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch

from bimkern.data.batches import Batch
from bimkern.data.step_layout import StepLayout
from bimkern.distributed.ranks import Ranks
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.checkpoint.shared import load_shared
from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.loop.agreement import Agreement, StepAgreement
from bimkern.train.loop.unwritten import Unsaved
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.run_folder.dataset_manifest import Quarantine
from bimkern.watchdog import stopped_by

_TENSORS = [field.name for field in fields(Batch)]


class Sharing(Protocol):
    """What a trainer asks of the way in which ranks share the work."""

    @property
    def ranks(self) -> Ranks: ...

    def layout(self, whole: StepLayout) -> StepLayout:
        """Return what this rank loads of the steps of a run."""

    def loading(self, requested: Callable[[], bool]) -> AbstractContextManager[object]:
        """Return a context to load a step in, where a stop may be requested."""

    def whole(self, batch: list[Batch]) -> list[Batch]:
        """Return, on rank 0, all images of a step, of which this rank has loaded its share."""

    def agreement(self, quarantine: Quarantine, updates: Sequence[GroupOptimizer]) -> StepAgreement:
        """Return what ranks agree through."""

    def saver(self, folder: Path, *, every: int) -> AsyncSaver | Unsaved:
        """Return what this rank saves by."""

    def load(self, folder: Path, updates: Sequence[GroupOptimizer]) -> Checkpoint | None:
        """Return what this rank needs of the newest intact checkpoint, to load updates from."""

    def join(self, values: list[Any]) -> list[Any]:
        """Return values of the updates of the whole network, as JSON, from those of this rank's updates."""

    def own(self, values: list[Any]) -> list[Any]:
        """Return values of this rank's updates from those of the whole network's."""

    def stepping(self) -> AbstractContextManager[object]:
        """Return a context to run a step in: what one rank cannot recover from ends the run of all."""

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank, now or, the same on every rank, at a later call."""


class SharedImages:
    """Every rank has the whole network, and the same of whatever is no image; one process has all images."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def layout(self, whole: StepLayout) -> StepLayout:
        return whole.of_rank(self.ranks.rank, self.ranks.size)

    def loading(self, requested: Callable[[], bool]) -> AbstractContextManager[object]:
        return stopped_by(requested)

    def whole(self, batch: list[Batch]) -> list[Batch]:
        own = Batch(**{name: torch.cat([getattr(part, name) for part in batch]) for name in _TENSORS})
        found = [own]
        for rank, count in enumerate(self.ranks.all_gather_object(len(own.images))):
            if rank and self.ranks.rank in (0, rank):
                part = own if rank == self.ranks.rank else _empty_like(own, count)
                for name in _TENSORS:
                    self.ranks.move(getattr(part, name), rank, 0)
                found.append(part)
        return found if self.ranks.rank == 0 else [own]

    def agreement(self, quarantine: Quarantine, updates: Sequence[GroupOptimizer]) -> StepAgreement:
        return Agreement(self.ranks, quarantine, updates)

    def saver(self, folder: Path, *, every: int) -> AsyncSaver | Unsaved:
        return AsyncSaver(folder, every=every) if self.ranks.rank == 0 else Unsaved()

    def load(self, folder: Path, updates: Sequence[GroupOptimizer]) -> Checkpoint | None:
        return load_shared(folder, self.ranks, sharded=any(update.is_sharded for update in updates))

    def join(self, values: list[Any]) -> list[Any]:
        return values

    def own(self, values: list[Any]) -> list[Any]:
        return values

    def stepping(self) -> AbstractContextManager[object]:
        return nullcontext()

    def any(self, flag: bool) -> bool:
        return flag


def _empty_like(batch: Batch, count: int) -> Batch:
    """Return a batch of so many images, without values."""
    tensors = {name: getattr(batch, name) for name in _TENSORS}
    return Batch(**{name: tensor.new_empty(count, *tensor.shape[1:]) for name, tensor in tensors.items()})
