"""Divergence: groups that learn nothing any more, and the return to the last checkpoint."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from bimkern.data.batches import Batch
from bimkern.errors import RunError
from bimkern.files import atomic
from bimkern.files.best_effort import BestEffort
from bimkern.train.checkpoint import safetensors_writer
from bimkern.train.config.run import Precision
from bimkern.train.optim.group import GroupOptimizer

logger = logging.getLogger("bimkern.train")

PATIENCE = 10  # updates in a row that a group may skip
_REMEDIES: dict[Precision, str] = {
    "fp32": "A smaller --base-lr may help",
    "bf16": "A smaller --base-lr or --precision fp32 may help",
    "fp16": "A smaller --base-lr, --precision bf16 or --precision fp32 may help",
}


class Diverged(RunError, RuntimeError):
    """Training cannot continue, neither from here nor from its last checkpoint."""

    of_all_ranks = True


class Divergence:
    """Watch the updates of a run: a group that skips too many sends it back, once to each checkpoint."""

    def __init__(self, updates: Sequence[GroupOptimizer], folder: Path, *, precision: Precision) -> None:
        """Take the groups' updates, the folder for the batch that they failed on, and the run's precision."""
        self._updates, self._folder, self._precision = updates, folder, precision
        self._returned_to = 0

    def is_learning(self) -> bool:
        """Return whether every group took its last update; else a checkpoint would be none to return to."""
        return not any(update.skipped_in_a_row for update in self._updates)

    def found(self, done: int) -> bool:
        """Warn of groups whose last updates were skipped; return whether one has skipped too many."""
        skipped = {update.name: int(update.skipped_in_a_row) for update in self._updates}
        for name, count in skipped.items():
            if count:
                logger.warning("step %d: %s has a gradient that is not finite; %d updates skipped", done, name, count)
        return max(skipped.values()) >= PATIENCE

    def dump(self, done: int, batch: list[Batch]) -> str:
        """Save the batch for inspection, if the disk has room; return where it is, in words."""
        path = self._folder / f"diverged-step-{done:08d}.safetensors"
        tensors = {name: torch.cat([getattr(part, name) for part in batch]) for name in ("images", "draw_ids")}
        with BestEffort(str(path)).attempt(), atomic.replaced(path) as scratch:
            safetensors_writer.write(scratch, tensors)
        return f"the last batch is in {path}" if path.is_file() else "there was no room for the last batch"

    def returned(self, done: int, step: int, dumped: str) -> None:
        """Continue from a checkpoint that was loaded.

        Args:
            done: the steps done when divergence was found.
            step: that of the checkpoint, 0 where there was none.
            dumped: where the batch is.

        Raises:
            Diverged: it is no help, since there was none, or it was returned to before.
        """
        if step in (0, self._returned_to):
            raise Diverged(
                f"no finite gradient for {PATIENCE} updates, up to step {done}, and no checkpoint to return to that "
                f"would change it; {dumped}. {_REMEDIES[self._precision]}"
            )
        self._returned_to = step
        for update in self._updates:
            update.skipped_in_a_row.zero_()
