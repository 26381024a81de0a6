"""The checkpoint that all ranks resume from: the first reads it, and sends it to the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.distributed import Ranks, agreed
from bimkern.train.checkpoint import store
from bimkern.train.checkpoint.store import Checkpoint


def load_shared(
    folder: Path, ranks: Ranks, *, holds: Callable[[str], bool] = lambda parameter: True
) -> Checkpoint | None:
    """Load the newest intact checkpoint on rank 0, as load_latest does, and return it on every rank.

    Args:
        folder: of the run's checkpoints.
        ranks: of the run.
        holds: returns whether this rank needs the tensors of a parameter; the others are not kept.

    Raises:
        CheckpointError, OtherRank: no checkpoint is intact.
    """
    with ranks.patient(), agreed(ranks):
        saved = store.load_latest(folder) if ranks.rank == 0 else None
    about = ranks.share(None if saved is None else _description(saved))
    if about is None or ranks.size == 1:
        return saved
    kept: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for part in _PARTS:
        for name, like in about[part].items():
            tensor: Tensor = _empty(*like) if saved is None else getattr(saved, part).pop(name)
            ranks.copy(tensor)
            if holds(name.partition("/")[0]):
                kept[part][name] = tensor
    return Checkpoint(about["step"], kept["model"], kept["optimizer"], about["state"])


_PARTS = ("model", "optimizer")


def _description(saved: Checkpoint) -> dict[str, Any]:
    parts = {
        part: {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in getattr(saved, part).items()}
        for part in _PARTS
    }
    return {"step": saved.step, "state": saved.state, **parts}


def _empty(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
