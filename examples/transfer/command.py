"""The options that both examples take, and what they write."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bimkern.cli import command
from bimkern.errors import BimkernError
from examples.transfer.training import Recipe


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train on what, and where to write it."""

    backbone: Path
    """Run folder of bimkern, one of its checkpoints, or a backbone exported in the format timm or bimkern."""
    data: str
    """Folder with the data set, or `shapes`: a small one is then drawn into OUT."""
    out: Path
    """Folder for model.pt, metrics.json and predictions.png."""
    scratch: bool = False
    """Begin with random weights of the same encoder, to compare."""
    epochs: float | None = None
    """Passes over the training images."""
    steps: int | None = None
    """Steps, in place of epochs."""
    batch_size: int | None = None
    """Images per step."""
    micro_batch: int | None = None
    """Images in memory at a time, whose gradients are added. Default: the batch."""
    lr: float | None = None
    """Highest learning rate."""
    image_size: int | None = None
    """Pixels a side of a training crop."""
    workers: int = field(default_factory=lambda: min(8, len(os.sched_getaffinity(0)) - 1))
    """Processes that load images."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    """cpu, cuda or cuda:N."""
    seed: int = 0
    """Of weights, order and crops."""

    def changed(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the numbers that are given here."""
        given = {name: getattr(self, name) for name in ("batch_size", "lr", "image_size")}
        length = {"steps": self.steps or 0, "epochs": self.epochs or 0} if self.steps or self.epochs else {}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None}, **length)

    def folder(self, draw: Callable[[Path], None]) -> Path:
        """Return the folder of the data set, drawn by `draw` if it is the small one."""
        if self.data != "shapes":
            return Path(self.data)
        draw(self.out / "shapes")
        return self.out / "shapes"

    def save(self, model: nn.Module, metrics: dict[str, Any]) -> None:
        torch.save(model.state_dict(), self.out / "model.pt")
        (self.out / "metrics.json").write_text(json.dumps(metrics, indent=1))


def run(program: str, options: type[Options], example: Callable[[Any], None], description: str) -> None:
    """Run an example by its options; a mistake in them ends it with one line."""
    usage = f"python -m {program}"
    try:
        chosen = command.parse(options, sys.argv[1:], usage=usage, description=description)
        chosen.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(chosen.seed)
        example(chosen)
    except BimkernError as error:
        command.report(usage, error)
