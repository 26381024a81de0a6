"""The checkpoint that all ranks resume from: the first reads it, and sends it to the others."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.distributed import Ranks, agreed
from bimkern.train.checkpoint import store
from bimkern.train.checkpoint.store import Checkpoint


def load_shared(folder: Path, ranks: Ranks) -> Checkpoint | None:
    """Load the newest intact checkpoint on rank 0, as load_latest does, and return it on every rank.

    Raises:
        CheckpointError, OtherRank: no checkpoint is intact.
    """
    with ranks.patient(), agreed(ranks):
        saved = store.load_latest(folder) if ranks.rank == 0 else None
    about = ranks.share(None if saved is None else _description(saved))
    if about is None or ranks.size == 1:
        return saved
    if saved is None:
        model, optimizer = ({name: _empty(*like) for name, like in about[part].items()} for part in _PARTS)
        saved = Checkpoint(about["step"], model, optimizer, about["state"])
    for tensor in (*saved.model.values(), *saved.optimizer.values()):
        ranks.copy(tensor)
    return saved


_PARTS = ("model", "optimizer")


def _description(saved: Checkpoint) -> dict[str, Any]:
    parts = {
        part: {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in getattr(saved, part).items()}
        for part in _PARTS
    }
    return {"step": saved.step, "state": saved.state, **parts}


def _empty(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
