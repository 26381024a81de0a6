"""Runs of ranks that share out the optimizer's state, as functions that ranks import."""

from contextlib import suppress

import torch
from shared_runs import config_of
from torch import nn

from bimkern.distributed.connect import connected
from bimkern.train.checkpoint.streamed import read_all
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.loop.streaming import served
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.run import run


def train_in_turn(runs):
    """Train one configuration after the other: names of recipes, and their options."""
    for name, out, options in runs:
        run(config_of(name, out, **options))


def count_state(sizes):
    """Update parameters of some sizes once, and load on all ranks what rank 0 has collected of the optimizer's state.

    Return the bytes that this rank has of it.
    """
    with connected("cpu", 60) as ranks:
        first = updated(sizes, ranks, steps=1)
        saved = collected(first, ranks)
        second = updated(sizes, ranks, steps=0)
        second.load_tensors(saved)
        again = collected(second, ranks)
        assert "fixed/step" not in saved
        assert not any(tensor.any() for name, tensor in saved.items() if name.startswith("idle/"))
        second.load_tensors({name: tensor for name, tensor in saved.items() if not name.startswith("idle/")})
        assert all(torch.equal(tensor, again[name]) for name, tensor in collected(second, ranks).items())
        for i, size in enumerate(sizes[: len(sizes) if ranks.rank == 0 else 0]):
            assert saved[f"p{i}/step"] == 1
            assert torch.equal(saved[f"p{i}/exp_avg"], torch.arange(float(size)) / 2)
        assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())
        state = second._optimizer.inner.state.values()
        return sum(tensor.nbytes for quantities in state for tensor in quantities.values())


def updated(sizes, ranks, steps):
    """Return an update that is sharded, after so many steps, with a parameter without gradients and a fixed one."""
    parameters = [(f"p{i}", nn.Parameter(torch.ones(size))) for i, size in enumerate(sizes)]
    others = [("idle", nn.Parameter(torch.ones(300))), ("fixed", nn.Parameter(torch.ones(200), requires_grad=False))]
    config = AdamWConfig(betas=(0.5, 0.5))
    device = torch.device("cpu")
    given = [*others, *parameters]
    update = GroupOptimizer("all", given, config, device=device, fp16=False, ranks=ranks, sharded=True)
    for _ in range(steps):
        update.set_rates(lambda group: 0.1)
        for _, parameter in parameters:
            parameter.grad = torch.arange(float(parameter.numel())) / ranks.size
        update.apply()
        update.finish()
        assert all((parameter[1:] < 1).all() for _, parameter in parameters)  # those of the other ranks, too
    return update


def collected(update, ranks):
    """Return the optimizer's state, on rank 0, which begins twice, as after a failed save."""
    tensors = dict(update.tensors())
    with suppress(OSError), served(tensors, ranks):
        if ranks.rank == 0:
            tensors["p1/exp_avg"].read()
            raise OSError
    with served(tensors, ranks):
        return read_all(tensors) if ranks.rank == 0 else {}
