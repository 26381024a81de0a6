"""Tensors that are shared out over the ranks and that the next step changes: rank 0 reads them, one at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from bimkern.distributed.agree import agreed
from bimkern.distributed.ranks import Ranks
from bimkern.train.checkpoint.store import CheckpointError
from bimkern.train.checkpoint.streamed import Streamed, is_live, read


@contextmanager
def served(tensors: Mapping[str, Tensor | Streamed], ranks: Ranks) -> Iterator[None]:
    """Let rank 0 read what is live, in any order and as often as it needs to, until it leaves the context."""
    if not any(map(is_live, tensors.values())):
        yield
        return
    with ranks.patient():
        if ranks.rank == 0:
            try:
                yield
            finally:
                ranks.broadcast_object(None)
            return
        yield
        while (name := ranks.broadcast_object(None)) is not None:
            read(tensors[name])


@contextmanager
def all_saved(ranks: Ranks) -> Iterator[None]:
    """Wait for rank 0 to save, and fail where it does."""
    with ranks.patient(), agreed(ranks, CheckpointError):
        yield
