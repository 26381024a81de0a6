"""Checkpoints of an optimizer whose state is shared out over the ranks: rank 0 reads it, one tensor at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from bimkern.distributed import Ranks
from bimkern.train.checkpoint.streamed import Streamed, read
from bimkern.train.optim.group import GroupOptimizer


class OptimizerState:
    """The state of the optimizers of all updates."""

    def __init__(self, updates: Sequence[GroupOptimizer], ranks: Ranks) -> None:
        self._updates, self._ranks = updates, ranks
        self.is_sharded = any(update.is_sharded for update in updates)

    def tensors(self) -> dict[str, Tensor | Streamed]:
        """Return its tensors by name."""
        return {name: tensor for update in self._updates for name, tensor in update.tensors()}

    @contextmanager
    def served(self) -> Iterator[None]:
        """Let rank 0 read what is streamed, in any order and as often as it needs to, until it leaves the context."""
        if not self.is_sharded:
            yield
            return
        with self._ranks.patient():
            if self._ranks.rank == 0:
                try:
                    yield
                finally:
                    self._ranks.share(None)
                return
            yield
            tensors = self.tensors()
            while (name := self._ranks.share(None)) is not None:
                read(tensors[name])
