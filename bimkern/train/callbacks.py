"""Call-backs, by which a program watches a run. They receive numbers and paths, so they cannot change what is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NO_CALLBACKS", "Callbacks", "FinishedStep", "Saved"]


@dataclass(frozen=True, kw_only=True)
class FinishedStep:
    """An optimizer step that is done. After a return to a checkpoint, which divergence causes, steps come again."""

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


NO_CALLBACKS = Callbacks()
