"""The options that both examples take, and what they write."""

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bimkern.cli import command
from bimkern.models.pyramid import STRIDES
from bimkern.train.config.run import resolve_device
from examples.transfer.errors import TransferError
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
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is a GPU if there is one."""
    seed: int = 0
    """Of weights, order and crops."""

    def __post_init__(self) -> None:
        """Check what is given.

        Raises:
            TransferError, ConfigError: a number is none that training can have, or there is no such device.
        """
        for name in ("steps", "batch_size", "micro_batch", "image_size"):
            self.at_least(name, 1)
        self.at_least("workers", 0)
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TransferError(f"--{name} must be above 0 and finite, got {value:g}")
        if self.steps is not None and self.epochs is not None:
            raise TransferError("--steps and --epochs both say how long training takes; give one of them")
        if self.image_size is not None and self.image_size % STRIDES[-1]:
            raise TransferError(f"--image-size must be a multiple of {STRIDES[-1]}, got {self.image_size}")
        if not 0 <= self.seed < 2**63:
            raise TransferError(f"--seed must be in [0, 2**63), got {self.seed}")
        object.__setattr__(self, "device", f"{resolve_device(self.device)}")

    def at_least(self, name: str, least: int) -> None:
        """Raise TransferError if an option is given and is less."""
        value = getattr(self, name)
        if value is not None and value < least:
            raise TransferError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")

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
    """Run an example by its options; a mistake in them, or a file that cannot be read, ends it with one line."""
    usage = f"python -m {program}"
    with command.ended_in_a_line(usage):
        chosen = command.parse(options, sys.argv[1:], usage=usage, description=description)
        chosen.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(chosen.seed)
        example(chosen)
