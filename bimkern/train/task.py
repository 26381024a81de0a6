"""What a trainer asks of a task: what is trained, and how a step of it is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from bimkern.arena import Plan
from bimkern.data.batches import Batch
from bimkern.train.memory.allocator import StepMemory
from bimkern.train.optim.group import GroupOptimizer


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

    def compile(self) -> None:
        """Compile what steps run."""

    def step(self, index: int, batch: Sequence[Batch], memory: StepMemory) -> StepResult:
        """Run optimizer step `index`, from 0, on its micro-batches."""

    def conditions(self, index: int) -> dict[str, int]:
        """Return what the loss of a step depends on beside the weights: losses under others do not compare."""

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON, to recognize what the task learns from beside images."""

    def refuse_other(self, identity: dict[str, Any], checkpoint: str) -> None:
        """Make sure that a checkpoint, named for messages, was trained by the same task.

        Raises:
            ConfigError: it was not.
        """

    def held_out_losses(self) -> list[float]:
        """Return the loss of every part of the network on images that are held out."""

    def snapshot(self, done: int, records: list[dict[str, Any]], plan: Plan | None) -> Callable[[], Path | None]:
        """Compute what the pictures of a step show; return what draws them, in any thread, and names one to log."""
