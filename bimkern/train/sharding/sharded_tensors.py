"""Tensors of which every rank has a shard: read as a whole, one at a time, and shared out again.

Every rank takes part in both, and has one whole tensor meanwhile.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from bimkern.distributed.ranks import Ranks
from bimkern.distributed.transfers import lost
from bimkern.train.checkpoint.streamed import Streamed


def streamed(key: str, like: DTensor, shard: Tensor, ranks: Ranks) -> Streamed:
    """Return a tensor that rank 0 reads while the other ranks read what it shares the keys of.

    Args:
        key: its name in a checkpoint.
        like: a tensor of the same shape, sharded in the same way.
        shard: this rank's.
        ranks: all.
    """

    def collect() -> Tensor:
        if ranks.rank == 0:
            ranks.broadcast_object(key)
        return whole(like, shard)

    return Streamed(like.shape, shard.dtype, collect, live=True)


@torch.no_grad()
def whole(like: DTensor, shard: Tensor) -> Tensor:
    """Return on every rank the tensor of which each has a shard, as of another one."""
    layout: dict[str, Any] = {"device_mesh": like.device_mesh, "placements": like.placements, "run_check": False}
    with lost():
        return DTensor.from_local(shard, **layout, shape=like.shape, stride=like.stride()).full_tensor()


@torch.no_grad()
def share_out(like: DTensor, given: Tensor | None, shard: Tensor) -> None:
    """Overwrite every rank's shard with its part of a tensor that rank 0 alone gives.

    Raises:
        ValueError: it has another shape than the tensor that it belongs to.
    """
    if given is None:
        given = torch.empty(like.shape, dtype=shard.dtype, device=shard.device)
    elif given.shape != like.shape:
        raise ValueError(f"a tensor must be {list(like.shape)}, got {list(given.shape)}")
    given = given.to(shard.device, shard.dtype)
    with lost():
        shard.copy_(distribute_tensor(given, like.device_mesh, like.placements).to_local())
