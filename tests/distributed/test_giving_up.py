"""A rank that runs out of memory anywhere in a step sends what the others send, so that none of them waits."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bimkern.data.batches import Batch
from bimkern.distributed.transfers import NotSent
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.config.run import Phase
from bimkern.train.memory.allocator import TorchMemory
from bimkern.train.optim.group import GroupOptimizer, give_up
from bimkern.train.pretraining import Pretraining

CPU = torch.device("cpu")
IMAGES, SIZES = 8, (32, 64)
STEPS = 4  # two of each size
CALLS = ((MIM, "views"), (MIM, "encode"), (MIM, "loss"), (GroupOptimizer, "_update_part"))


class Recorded:
    """One of two ranks: notes what it exchanges, by connection."""

    rank, size = 0, 2

    def __init__(self):
        self.reduced, self.agreed, self.broadcast = [], [], []

    def all_reduce_max(self, values):
        self.agreed.append(len(values))
        return list(values)

    def begin_all_reduce(self, tensor):
        self.reduced.append(len(tensor))
        return NotSent()

    def begin_broadcast(self, tensor, source):
        self.broadcast.append((len(tensor), source))
        return NotSent()

    def log(self):
        return [*self.reduced], [*self.agreed], [*self.broadcast]


def task_of(name, shard, monkeypatch):
    config = RECIPES[name].config
    encoder = replace(config.method.encoder, image_size=SIZES[-1])
    phases = tuple(Phase(share=0.5, image_size=size) for size in SIZES)
    run = replace(config.run, batch_size=2 * IMAGES, steps=STEPS, shard=shard)
    config = replace(config, method=replace(config.method, encoder=encoder), phases=phases, run=run)
    monkeypatch.setattr(Pretraining, "_load_held_out", lambda task, images: (torch.zeros(1, 3, 64, 64), torch.zeros(1)))
    images = SimpleNamespace(images=range(64), holds_out=False)
    ranks, layout = Recorded(), config.step_layout(64).of_rank(0, 2)
    assert [layout.at(step).image_size.height for step in range(STEPS)] == [32, 32, 64, 64]
    return Pretraining(config, layout, images=images, pictures=Path(), device=CPU, ranks=ranks), layout, ranks


def train(task, layout, fails_at, saves, monkeypatch):
    """Run steps until a call of one runs out of memory; yield the calls of each.

    Before each step, updates are finished as for a save, if it saves.
    """
    calls = [0]
    with monkeypatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, counting(getattr(owner, name), calls, fails_at))
        for index in range(STEPS):
            for update in task.updates if saves else ():
                update.finish()
            size, first = layout.at(index).image_size.height, calls[0]
            images = torch.randint(256, (IMAGES, 3, size, size), dtype=torch.uint8)
            task.step(index, [Batch(images, torch.arange(IMAGES), torch.arange(IMAGES))], TorchMemory())
            yield range(first, calls[0])


def counting(plain, calls, fails_at):
    def call(*args, **options):
        calls[0] += 1
        if calls[0] - 1 == fails_at:
            raise MemoryError
        return plain(*args, **options)

    return call


@pytest.mark.parametrize("saves", [False, True], ids=["", "after saves"])
@pytest.mark.parametrize(
    ("name", "shard"), [("bim_vit_test", "none"), ("bim_vit_test", "optimizer"), ("mae_vit_test", "none")]
)
def test_what_is_exchanged_is_that_of_a_step_that_is_finished(name, shard, saves, monkeypatch):
    task, layout, ranks = task_of(name, shard, monkeypatch)
    finished = [(calls, ranks.log()) for calls in train(task, layout, None, saves, monkeypatch)]
    for calls, log in finished:
        for point in calls:
            task, layout, ranks = task_of(name, shard, monkeypatch)
            with pytest.raises(MemoryError):
                list(train(task, layout, point, saves, monkeypatch))
            give_up(task.updates)
            assert ranks.log() == log, point
