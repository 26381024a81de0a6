"""The checkpoint that all ranks resume from: the first reads it, and sends it to the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.distributed import Ranks, agreed
from bimkern.train.checkpoint import store
from bimkern.train.checkpoint.store import Checkpoint


def load_shared(folder: Path, ranks: Ranks, *, sharded: bool = False) -> Checkpoint | None:
    """Load the newest intact checkpoint on rank 0, as load_latest does, and return it on every rank.

    Args:
        folder: of the checkpoints.
        ranks: that load it.
        sharded: leave the optimizer's state on rank 0, which sends each of the others a share later.

    Raises:
        CheckpointError, OtherRank: no checkpoint is intact.
    """
    with ranks.patient(), agreed(ranks):
        saved = store.load_latest(folder) if ranks.rank == 0 else None
    parts = ("model",) if sharded else ("model", "optimizer")
    about = ranks.share(None if saved is None else _description(saved, parts))
    if about is None or ranks.size == 1:
        return saved
    if saved is None:
        tensors = {part: {name: _empty(*like) for name, like in about[part].items()} for part in parts}
        saved = Checkpoint(about["step"], tensors["model"], tensors.get("optimizer", {}), about["state"])
    for part in parts:
        for tensor in getattr(saved, part).values():
            ranks.copy(tensor)
    return saved


def _description(saved: Checkpoint, parts: Sequence[str]) -> dict[str, Any]:
    shapes = {
        part: {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in getattr(saved, part).items()}
        for part in parts
    }
    return {"step": saved.step, "state": saved.state, **shapes}


def _empty(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
