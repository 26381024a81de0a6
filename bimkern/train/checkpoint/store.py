"""Checkpoints: atomic, and verified byte by byte when they are loaded.

A checkpoint is a folder `step-00000100` of safetensors, JSON, and a manifest with the SHA-256 of each file. The last
two and the best are kept.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from bimkern.errors import BimkernError
from bimkern.files import atomic
from bimkern.files.utf8 import WHY_NOT, is_utf8
from bimkern.train.checkpoint import safetensors_writer
from bimkern.train.checkpoint.streamed import Streamed, TensorFile

logger = logging.getLogger("bimkern.train")

_MANIFEST = "manifest.json"
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_KEPT = 2


class CheckpointError(BimkernError, RuntimeError):
    """A checkpoint cannot be used; the message names the file and why."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to resume a run. There is no random state: random numbers are a function of the step."""

    step: int  # optimizer steps done
    model: Mapping[str, Tensor | Streamed]
    optimizer: Mapping[str, Tensor | Streamed]
    state: dict[str, Any]  # JSON


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def save(folder: Path, checkpoint: Checkpoint, *, best_step: int, between: Callable[[], object] = lambda: None) -> Path:
    """Write a checkpoint and delete those that are neither recent nor the best; return its path.

    Args:
        folder: of the run's checkpoints.
        checkpoint: what to write.
        best_step: of the best checkpoint, which is kept.
        between: called every few megabytes; an exception from it cancels the save, which then leaves nothing behind.

    Raises:
        CheckpointError: it cannot be written; earlier checkpoints are unchanged.
    """
    final = path_of(folder, checkpoint.step)
    try:
        with atomic.replaced_folder(final) as scratch:
            _write(scratch, checkpoint, between)
    except OSError as error:
        raise CheckpointError(f"{final} cannot be written ({error})") from error
    kept = _steps(folder)
    here = kept.index(final)
    # Later ones were skipped as damaged, or rolled back from.
    for other in (*kept[: max(0, here + 1 - _KEPT)], *kept[here + 1 :]):
        if other != path_of(folder, best_step):
            _drop(other)
    return final


def _write(folder: Path, checkpoint: Checkpoint, between: Callable[[], object]) -> None:
    state = json.dumps({"step": checkpoint.step} | checkpoint.state, indent=2)
    _write_text(folder / _STATE, state)
    sums = {
        _MODEL: safetensors_writer.write(folder / _MODEL, checkpoint.model, between=between),
        _OPTIMIZER: safetensors_writer.write(folder / _OPTIMIZER, checkpoint.optimizer, between=between),
        _STATE: hashlib.sha256(state.encode()).hexdigest(),
    }
    _write_text(folder / _MANIFEST, json.dumps(sums, indent=2))


def _drop(path: Path) -> None:
    try:
        atomic.remove_folder(path)
    except OSError as error:
        logger.warning("%s is no longer needed and cannot be deleted (%s)", path, error)


def load_latest(folder: Path) -> Checkpoint | None:
    """Delete what a killed save left, and load the newest intact checkpoint, to resume from.

    Same as: newest_intact, which changes nothing and is therefore safe on the folder of a live run.
    """
    for litter in filter(atomic.is_scratch, folder.glob(".*")):
        shutil.rmtree(litter)
    return newest_intact(folder)


def newest_intact(folder: Path) -> Checkpoint | None:
    """Load the newest intact checkpoint; damaged ones are skipped with a warning.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        CheckpointError: no checkpoint is intact.
    """
    reasons = []
    for path in reversed(_steps(folder)):
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            logger.warning("%s; taking %s instead", reason, path)
        return checkpoint
    if reasons:
        raise CheckpointError("no intact checkpoint is left: " + "; ".join(reasons))
    return None


def load(path: Path) -> Checkpoint:
    """Load one checkpoint after verifying every byte of it.

    Raises:
        CheckpointError: a file is missing or damaged, or the path is no UTF-8.
    """
    if not is_utf8(path):
        raise CheckpointError(f"{path} cannot be read: {WHY_NOT}")
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        if not isinstance(sums, dict) or sums.keys() != {_MODEL, _OPTIMIZER, _STATE}:
            raise CheckpointError(f"{path / _MANIFEST} is damaged (it must name the three other files)")
        for name, expected in sums.items():
            if _sha256(path / name) != expected:
                raise CheckpointError(f"{path / name} is damaged (its SHA-256 is not that of the manifest)")
        state = json.loads((path / _STATE).read_text())
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise CheckpointError(f"{path / _STATE} is damaged (it must say which step it is of)")
        model, optimizer = TensorFile(path / _MODEL), TensorFile(path / _OPTIMIZER)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    return Checkpoint(state.pop("step"), model, optimizer, state)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    """Write a file, inside a folder that is not visible yet, and wait until its content is on disk."""
    path.write_text(text)
    atomic.fsync(path)
