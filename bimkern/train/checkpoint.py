"""Checkpoints: written whole or not at all, checked byte by byte before they are believed.

A checkpoint is a folder `step-00000100` of safetensors, JSON, and a manifest with the SHA-256 of each file. It is
written under a temporary name, fsynced, and renamed. The last two are kept, and the best.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger("bimkern.train")

_TEMPORARY = ".writing-"
_MANIFEST = "manifest.json"
_KEPT = 2


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the file and why."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on; its randomness needs nothing, it is a function of the step."""

    step: int  # optimizer steps done
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # JSON


def save(folder: Path, checkpoint: Checkpoint, *, best_step: int) -> Path:
    """Write a checkpoint below folder and drop those that are neither recent nor the best; return its path.

    Raises:
        CheckpointError: it cannot be written; the checkpoints before it are as they were.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    scratch = folder / f"{_TEMPORARY}{final.name}"
    try:
        _write(scratch, checkpoint)
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(f"{final} cannot be written ({error})") from error
    kept = _steps(folder)
    here = kept.index(final)
    # What lies beyond was passed over as damaged or left by rolling back: this run will not come to it.
    for other in (*kept[: max(0, here + 1 - _KEPT)], *kept[here + 1 :]):
        if other.name != f"step-{best_step:08d}":
            shutil.rmtree(other)
    return final


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in checkpoint.model.items()}, folder / "model.safetensors")
    save_file({k: v.contiguous() for k, v in checkpoint.optimizer.items()}, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": checkpoint.step} | checkpoint.state, indent=2))
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(sums, indent=2))
    for path in (*folder.iterdir(), folder):
        _fsync(path)


def load_latest(folder: Path) -> Checkpoint | None:
    """Clean up what a killed save left, and load the newest checkpoint that is intact, for a run to go on from.

    Same as: newest_intact, which changes nothing and may therefore read what a live run writes.
    """
    for litter in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(litter)
    return newest_intact(folder)


def newest_intact(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint that is intact; damaged ones are named and passed over.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and none is intact.
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
    """Load one checkpoint after checking every byte of it.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        for name, expected in sums.items():
            if _sha256(path / name) != expected:
                raise CheckpointError(f"{path / name} is damaged (its SHA-256 is not that of the manifest)")
        state = json.loads((path / "state.json").read_text())
        model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    return Checkpoint(state.pop("step"), model, optimizer, state)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
