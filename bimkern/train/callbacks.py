"""Call-backs, by which a program watches a run. They receive numbers and paths, and cannot change what is trained."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

__all__ = ["NO_CALLBACKS", "Callbacks", "FinishedStep", "Saved"]


@dataclass(frozen=True, kw_only=True)
class FinishedStep:
    """An optimizer step that is done. Steps come again if divergence or a lack of memory leads back to a checkpoint."""

    step: int  # done so far, from 1
    num_steps: int  # of the whole run
    losses: tuple[float | None, ...]  # of every stage; None: it is frozen
    lr: float  # of the last stage


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is written. Its folder stays until two later ones are there, or longer if it is the best."""

    step: int
    checkpoint: Path  # a folder
    pictures: Path  # the folder of pictures, which are drawn by now


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that a run calls between two steps, in the thread that trains.

    What they raise ends the run; the same call resumes it from the last checkpoint.
    """

    on_step: Callable[[FinishedStep], object] | None = None
    """After every step. Its losses wait for a GPU to finish the step."""
    on_save: Callable[[Saved], object] | None = None
    """Once for every checkpoint, which is written while later steps run."""

    def finished(self, step: int, num_steps: int, losses: Tensor, num_frozen: int, lr: float) -> None:
        """Report a step, with the losses [S] of all stages; those of the frozen ones, from the first on, are stale."""
        if self.on_step is not None:
            known = (*[None] * num_frozen, *losses[num_frozen:].tolist())
            self.on_step(FinishedStep(step=step, num_steps=num_steps, losses=known, lr=lr))

    def saved(self, checkpoints: Iterable[tuple[int, Path]], pictures: Path) -> None:
        """Report checkpoints by their steps and paths."""
        if self.on_save is not None:
            for step, path in checkpoints:
                self.on_save(Saved(step=step, checkpoint=path, pictures=pictures))


NO_CALLBACKS = Callbacks()
