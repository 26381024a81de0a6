"""Runs of several ranks, as functions that ranks import."""

import json
import math
import os
import signal
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensor

from bimkern.data.sources.image_folder import ImageFolder
from bimkern.mim.model import MIM
from bimkern.models.classifier import Classifier
from bimkern.recipes import RECIPES
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train.callbacks import Callbacks
from bimkern.train.finetuning.run import finetune
from bimkern.train.run import run

OPTIONS = {"batch_size": 7, "micro_batch": 3, "workers": 0, "log_every": 1, "save_every": 100, "dist_timeout": 60}


def config_of(name, out, photos=None, **options):
    config = RECIPES[name].config
    source = config.source if photos is None else ImageFolder(paths=(photos,))
    return replace(config, source=source, run=replace(config.run, out=out, **(OPTIONS | options)))


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(names, folder, steps):
    """Train some recipes, one after the other."""
    for name in names:
        run(config_of(name, folder / name, steps=steps))


def train_with(fault, rank, name, out, photos, options):
    """Train one recipe while one rank meets with a fault; return what this rank has learned."""
    callbacks = Callbacks()
    if os.environ.get("RANK", "0") == f"{rank}":
        callbacks = fault() or callbacks
    model = run(config_of(name, out, photos, **options), callbacks).model
    return [parameter.double().sum().item() for parameter in model.parameters()]


def nan_in_stage_3():
    """Make the loss of the third step's first micro-batch NaN."""
    _on_loss(4, lambda loss: loss * math.nan)


def nan_from_step_3_on():
    """Make every loss of stage 3 NaN from the third step on."""
    _on_loss(4, lambda loss: loss * math.nan, for_good=True)


def out_of_memory():
    """Ask for more memory than there is, in the third step."""
    _on_loss(4, lambda loss: loss + torch.empty(2**50).sum())


def _on_loss(number, change, *, for_good=False):
    """Change the result of the number-th loss of stage 3, of which this rank has two in a step, or of all from then."""
    plain, calls = MIM.loss, iter(range(10**6))

    def loss(self, stage, *args):
        result = plain(self, stage, *args)
        if stage != 2 or isinstance(result, FakeTensor):  # the latter counts memory, and no loss
            return result
        call = next(calls)
        return change(result) if call == number or (for_good and call > number) else result

    MIM.loss = loss


class Terminating:
    """Send a signal to this process after so many steps."""

    def __init__(self, step, number=signal.SIGTERM):
        self._step, self._number = step, number

    def __call__(self):
        return Callbacks(on_step=self._on_step)

    def _on_step(self, finished):
        if finished.step == self._step:
            os.kill(os.getpid(), self._number)


class Deleting:
    """Delete a file after so many steps."""

    def __init__(self, step, path):
        self._step, self._path = step, path

    def __call__(self):
        return Callbacks(on_step=self._on_step)

    def _on_step(self, finished):
        if finished.step == self._step:
            self._path.unlink()


def finetune_without_memory(number, *given):
    """Fine-tune while the number-th loss of rank 1 asks for more memory than there is; return the accuracy."""
    plain, calls = Classifier.loss, iter(range(10**6))

    def loss(self, *args):
        result = plain(self, *args)
        if isinstance(result, FakeTensor) or os.environ.get("RANK") != "1":
            return result
        return result + torch.empty(2**50).sum() if next(calls) == number else result

    Classifier.loss = loss
    return finetune_with(*given)


def finetune_with(data, backbone, out, shard="none"):
    """Fine-tune the encoder of a run on labeled images; return the accuracy."""
    config = FINETUNE_RECIPES["demo"].config
    options = {"steps": 6, "batch_size": 8, "data": data, "backbone": backbone, "out": out, "workers": 0}
    options["shard"] = shard
    run = replace(config.run, epochs=1.0, log_every=1, eval_every=2, dist_timeout=60, **options)
    return finetune(replace(config, run=run)).held_out.top1
