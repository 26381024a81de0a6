"""Runs of ranks that share out the optimizer's state, as functions that ranks import."""

import torch
from shared_runs import config_of
from torch import nn

from bimkern.distributed import connected
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.run import run


def train_in_turn(runs):
    """Train one configuration after the other: names of recipes, and their options."""
    for name, out, options in runs:
        run(config_of(name, out, **options))


def count_state(sizes):
    """Update parameters of some sizes once; return the bytes of the optimizer's state that this rank has."""
    with connected("cpu", 60) as ranks:
        parameters = [(f"p{i}", nn.Parameter(torch.ones(size))) for i, size in enumerate(sizes)]
        options = {"device": torch.device("cpu"), "fp16": False, "ranks": ranks, "sharded": True}
        update = GroupOptimizer("all", parameters, AdamWConfig(), **options)
        update.set_rates(lambda group: 0.1)
        for _, parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        update.apply()
        update.finish()
        assert all((parameter < 1).all() for _, parameter in parameters)  # those of the other ranks, too
        state = update._optimizer.inner.state.values()
        return sum(tensor.nbytes for quantities in state for tensor in quantities.values())
