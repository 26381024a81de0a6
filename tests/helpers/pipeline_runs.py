"""Runs of two stages, as functions that ranks import."""

import os
import signal
import time
from dataclasses import replace

import torch
from shared_runs import Terminating, config_of
from torch._subclasses.fake_tensor import FakeTensor

from bimkern.cli.training import run_command
from bimkern.mim.model import MIM
from bimkern.mim.stages import equal_stages
from bimkern.train.callbacks import NO_CALLBACKS, Callbacks
from bimkern.train.run import run
from bimkern.train.trainer import Trainer

OPTIONS = {"micro_batch": 2, "log_every": 5, "save_every": 6, "dist_timeout": 60}


def two_stages(name, out, **options):
    """Return the config of a small recipe, cut into two stages."""
    config = config_of(name, out, **(OPTIONS | options))
    method = config.method
    one = {field: getattr(method, field)[:1] for field in ("heads", "targets")}
    return replace(config, method=replace(method, taps=equal_stages(method.encoder.depth, 2), **one))


def train_uncut(names, folder, options):
    """Train some recipes with the stages that they have."""
    for name in names:
        run(config_of(name, folder / name, **(OPTIONS | options)))


def train(names, folder, options):
    """Train some recipes, one after the other; return how many numbers this process held of each when it saved."""
    held, save = {}, Trainer._save

    def counted(self, *given, **options):
        _, optimizer = self._tensors()
        held[self.config.recipe] = [
            sum(parameter.numel() for parameter in self.task.model.parameters()),
            sum(tensor.numel() for tensor in optimizer.values()),
        ]
        save(self, *given, **options)

    Trainer._save = counted
    for name in names:
        run(two_stages(name, folder / name, **options))
    return held


def command(fault, rank, name, out, options):
    """Train as a command does, while one rank meets with a fault."""
    met = fault() if os.environ["RANK"] == f"{rank}" else None
    run_command("pretrain", lambda arguments: f"{run(two_stages(name, out, **options), met or NO_CALLBACKS)}", [])


def out_of_memory():
    """Ask for more memory than there is, in the third step."""
    plain, calls = MIM.loss, iter(range(10**6))

    def loss(self, *given):
        result = plain(self, *given)
        if isinstance(result, FakeTensor):  # counts memory
            return result
        return result + torch.empty(2**50).sum() if next(calls) == 9 else result

    MIM.loss = loss


def terminated():
    """Send SIGTERM to this process after three steps."""
    return Terminating(3)()


def killed():
    """Kill this process after eleven steps, some behind a save."""
    return Terminating(11, signal.SIGKILL)()


def slow():
    """Take more than a second for every step behind the first checkpoint."""
    return Callbacks(on_step=lambda finished: time.sleep(1.2 if finished.step >= OPTIONS["save_every"] else 0))
