"""A network that ranks share by its stages: rank k has stage k, and all images of a step for its targets."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.data.batches import Batch
from bimkern.data.step_layout import StepLayout
from bimkern.distributed.point_to_point import Lines
from bimkern.distributed.ranks import Group
from bimkern.mim.model import MIM, Method
from bimkern.mim.pipeline import Pipeline, assign, keep_stage, stage_state
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.checkpoint.shared import load_shared
from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.checkpoint.streamed import Streamed, read
from bimkern.train.loop.unwritten import Unsaved
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.pipeline.agreement import StageAgreement
from bimkern.train.pipeline.evaluation import StagesEverywhere
from bimkern.train.pipeline.link import Link
from bimkern.train.pipeline.saving import GatheringSaver, ServingSaver
from bimkern.train.run_folder.dataset_manifest import Quarantine
from bimkern.watchdog import STALLED, stopped_by


class SharedStages:
    """Share the work of a run by stages, as a trainer and a task ask for it."""

    def __init__(self, ranks: Group, method: Method, device: torch.device) -> None:
        """Connect every rank with its neighbors. Every rank has to call this at the same time."""
        self.ranks: Group = ranks
        self._method = method
        self._link = Link(ranks, device)
        self._lines = Lines(ranks, own=True, patient=True)  # for saves: rank 0 waits for its disk
        self._flags: deque[Callable[[], list[int]]] = deque()

    # of the trainer

    def layout(self, whole: StepLayout) -> StepLayout:
        return whole

    def loading(self, requested: Callable[[], bool]) -> AbstractContextManager[object]:
        # Other ranks hear of a signal some steps later, and need those from this one, unless its loader hangs.
        return stopped_by(requested, grace=STALLED)

    def whole(self, batch: list[Batch]) -> list[Batch]:
        return batch

    def agreement(self, quarantine: Quarantine, updates: Sequence[GroupOptimizer]) -> StageAgreement:
        return StageAgreement(self.ranks, quarantine, self._link)

    def saver(self, folder: Path, *, every: int) -> AsyncSaver | Unsaved:
        if self.ranks.rank == 0:
            return GatheringSaver(folder, every=every, ranks=self.ranks, lines=self._lines)
        return ServingSaver(self.ranks, self._lines)

    def load(self, folder: Path, updates: Sequence[GroupOptimizer]) -> Checkpoint | None:
        return load_shared(folder, self.ranks, holds=lambda name: self._method.stage_of(name) == self.ranks.rank)

    def join(self, values: list[Any]) -> list[Any]:
        return [value for part in self.ranks.all_gather_object(values) for value in part]

    def own(self, values: list[Any]) -> list[Any]:
        return values[self.ranks.rank : self.ranks.rank + 1]

    def stepping(self) -> AbstractContextManager[object]:
        return nullcontext()

    def any(self, flag: bool) -> bool:
        self._flags.append(self.ranks.begin_all_reduce_max([flag]))
        found = len(self._flags) > 1 and bool(self._flags.popleft()()[0])
        if found:
            self._flags.clear()  # those of steps that are run again
        return found

    # of the task

    def flow(self, method: Method) -> Pipeline:
        return Pipeline(self.ranks.rank, self._link)

    def built(self, build: Callable[[], MIM]) -> MIM:
        return build()

    def keep(self, model: MIM, device: torch.device) -> None:
        """Free what other ranks have of a network, and move the rest to the device."""
        keep_stage(model, self.ranks.rank)
        model.to(device)

    def state(self, model: MIM) -> dict[str, Tensor | Streamed]:
        return {**stage_state(model, self.ranks.rank)}

    def load_state(self, model: MIM, tensors: Mapping[str, Tensor | Streamed]) -> None:
        """Take over the weights of the stage.

        Raises:
            KeyError, RuntimeError: they are those of another network.
        """
        model.load_state_dict({name: read(tensors[name]) for name in self.state(model)}, strict=False)

    def everywhere(self, model: MIM) -> MIM:
        """Return the network for evaluation by all ranks at the same time, each of which computes its stage."""
        return StagesEverywhere(model, self.ranks)

    def complete(self, model: MIM) -> None:
        """Give the network to every rank as a whole."""
        for name, value in model.state_dict().items():
            owner = model.method.stage_of(name)
            shape = self.ranks.all_gather_object(list(value.shape))[owner]
            whole = value if owner == self.ranks.rank else value.new_empty(shape)
            self.ranks.broadcast(whole, source=owner)
            if owner != self.ranks.rank:
                assign(model, name, whole)
