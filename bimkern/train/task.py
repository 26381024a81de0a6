"""What a trainer asks of a task: what is trained, and how a step of it is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from bimkern.arena import Plan
from bimkern.data.batches import Batch
from bimkern.train.checkpoint.streamed import Streamed
from bimkern.train.memory.allocator import StepMemory
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.reporting.pictures import KeptPictures


@dataclass(frozen=True)
class StepResult:
    """What a step computed."""

    losses: Tensor  # [S], on the device: one for every part of the network that has its own
    num_frozen: int  # of those parts, from the first on, which did not learn
    lr: float


class Task(Protocol):
    """What a run trains, and how a step of it is computed."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def updates(self) -> Sequence[GroupOptimizer]: ...
    @property
    def pictures(self) -> KeptPictures: ...

    def compile(self) -> None:
        """Compile what steps run."""

    def step(self, index: int, batch: Sequence[Batch], memory: StepMemory) -> StepResult:
        """Run optimizer step `index`, from 0, on its micro-batches."""

    def conditions(self, index: int) -> dict[str, int | str]:
        """Return what the loss of a step depends on beside the weights: losses under others do not compare."""

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON, to recognize what the task learns from beside images."""

    def refuse_other(self, identity: dict[str, Any], checkpoint: str) -> None:
        """Make sure that a checkpoint, named for messages, was trained by the same task.

        Raises:
            ConfigError: it was not.
        """

    def state(self) -> dict[str, Tensor | Streamed]:
        """Return the tensors that a checkpoint must keep beside those of the optimizers, by name."""

    def load_state(self, tensors: Mapping[str, Tensor | Streamed]) -> None:
        """Take over what state() gave.

        Raises:
            KeyError, RuntimeError: it is that of another network.
        """

    def is_evaluated(self, done: int) -> bool:
        """Return whether the network is to be evaluated on held-out images after so many steps."""

    def held_out_record(self) -> dict[str, Any]:
        """Evaluate the network on images that are held out; return what metrics.jsonl keeps of it, as JSON."""

    def snapshot(self, done: int, records: list[dict[str, Any]], plan: Plan | None) -> Callable[[], Path | None]:
        """Compute what the pictures of a step show; return what draws them, in any thread, and names one to log."""
