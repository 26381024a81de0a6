"""What a checkpoint of ViT-B takes from the training loop: saved in the background, and in the foreground.

Weights and both moments of AdamW in float32: 1.3 GB for MAE, 2.3 GB for BIM.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.checkpoint.store import Checkpoint

ROUNDS = 3


@pytest.fixture(scope="module", params=["mae_vit_base", "bim_vit_base"])
def saved(request: Any) -> tuple[str, Checkpoint]:
    model = MIM(RECIPES[request.param].config.method).state_dict()
    moments = {f"{name}/{of}": torch.randn_like(w) for name, w in model.items() for of in ("exp_avg", "exp_avg_sq")}
    return request.param, Checkpoint(1, model, moments, {})


def report(benchmark: Any, name: str, saved: Checkpoint) -> None:
    benchmark.group = f"checkpoint of {name}"
    tensors = [*saved.model.values(), *saved.optimizer.values()]
    benchmark.extra_info["GB"] = sum(tensor.nbytes for tensor in tensors) / 1e9


@pytest.mark.parametrize("which", ["first", "later"])
def test_background(benchmark: Any, saved: tuple[str, Checkpoint], tmp_path: Path, which: str) -> None:
    name, checkpoint = saved
    saver = AsyncSaver(tmp_path, every=1)

    def save() -> None:
        saver.save(checkpoint, 0.5, first=lambda: None, required=False)

    def prepare() -> None:
        nonlocal saver
        saver.wait()
        if which == "first":
            saver = AsyncSaver(tmp_path, every=1)
            saver.reserve(checkpoint.model, checkpoint.optimizer)
            saver.wait()

    if which == "later":
        save()
    report(benchmark, name, checkpoint)
    benchmark.pedantic(save, setup=prepare, rounds=ROUNDS)
    saver.wait()
    written = checkpoints.newest_intact(tmp_path)
    assert written is not None
    assert written.step == checkpoint.step


def test_foreground(benchmark: Any, saved: tuple[str, Checkpoint], tmp_path: Path) -> None:
    name, checkpoint = saved
    report(benchmark, name, checkpoint)
    benchmark.pedantic(checkpoints.save, (tmp_path, checkpoint), {"best_step": 1}, rounds=ROUNDS)
