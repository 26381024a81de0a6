"""The checkpoint that all ranks resume from: the first reads it, and sends it to the others."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.distributed.agree import agreed
from bimkern.distributed.ranks import Ranks
from bimkern.train.checkpoint import store
from bimkern.train.checkpoint.store import Checkpoint


def load_shared(
    folder: Path,
    ranks: Ranks,
    *,
    sharded: bool = False,
    layers: Container[str] = (),
    holds: Callable[[str], bool] = lambda parameter: True,
) -> Checkpoint | None:
    """Load the newest intact checkpoint on rank 0, as load_latest does, and return it on every rank.

    Args:
        folder: of the checkpoints.
        ranks: that load it.
        sharded: leave the optimizer's state on rank 0, which sends each of the others a share later.
        layers: names of weights to leave on rank 0 likewise.
        holds: returns whether this rank needs what is saved of a parameter; others than rank 0 do not keep the rest.

    Raises:
        CheckpointError, OtherRank: no checkpoint is intact.
    """
    with ranks.patient(), agreed(ranks):
        saved = store.load_latest(folder) if ranks.rank == 0 else None
    parts = ("model",) if sharded else ("model", "optimizer")
    about = ranks.broadcast_object(None if saved is None else _description(saved, parts, layers))
    if about is None or ranks.size == 1:
        return saved
    kept: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for part in parts:
        for name, like in about[part].items():
            tensor: Tensor = _empty(*like) if saved is None else getattr(saved, part)[name]
            ranks.broadcast(tensor)
            if saved is None and holds(name.partition("/")[0]):
                kept[part][name] = tensor
    return saved or Checkpoint(about["step"], **kept, state=about["state"])


def _description(saved: Checkpoint, parts: Sequence[str], layers: Container[str]) -> dict[str, Any]:
    shapes = {
        part: {
            name: [list(tensor.shape), str(tensor.dtype)]
            for name, tensor in getattr(saved, part).items()
            if name not in layers
        }
        for part in parts
    }
    return {"step": saved.step, "state": saved.state, **shapes}


def _empty(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
