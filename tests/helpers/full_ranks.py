"""Runs of ranks that share out layers as well, as functions that ranks import."""

import os
import shutil
from dataclasses import replace
from functools import partial

import torch
from live_on_host import OnHost
from shared_runs import config_of, out_of_memory
from torch.distributed.tensor import DTensor

from bimkern.distributed.connect import connected
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train import network
from bimkern.train.loop.sharded_layers import SharedLayers
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.pretraining import Pretraining
from bimkern.train.run import run


def train_and_count(name, out, options):
    """Train a recipe; return the bytes that this rank has at the end, of weights and of the optimizer's state."""
    found, complete = [], Pretraining.complete

    def counted(task):
        weights = [p.to_local() if isinstance(p, DTensor) else p for p in task.model.parameters()]
        updated = [own for update in task.updates for own in update._optimizer.inner.state.values()]
        states = [tensor for own in updated for tensor in own.values()]
        found.append([sum(tensor.nbytes for tensor in tensors) for tensors in (weights, states)])
        complete(task)

    Pretraining.complete = counted
    try:
        run(config_of(name, out, **options))
    finally:
        Pretraining.complete = complete
    return found[0]


def build_and_count(name):
    """Build and shard a recipe's network; return live bytes, their peak, and whether it is the one built at once."""
    build, live = partial(network.build, RECIPES[name].config), LiveBytes()
    with connected("cpu", 60) as ranks, torch.random.fork_rng(devices=()):
        layers = SharedLayers(ranks, torch.device("cpu"))
        with OnHost([], live):
            torch.default_generator.manual_seed(3)
            model = layers.built(build)
            layers.keep(model, torch.device("cpu"))
        layers.complete(model)
        torch.default_generator.manual_seed(3)
        whole, state = build().state_dict(), model.state_dict()
        equal = all(torch.equal(state[name], tensor) for name, tensor in whole.items())
        return live.now, live.peak, whole.keys() == state.keys() and equal


def command_without_memory(arguments):
    """Run a command; rank 1 runs out of memory in the third step."""
    if os.environ["RANK"] == "1":
        out_of_memory()
    main(arguments)


def train_frozen(out, options):
    """Train a recipe whose first layers are frozen from the first step on, twice: the second time from step 1."""
    config = config_of("vitfreeze_vit_test", out, **options)
    config = replace(config, schedule=replace(config.schedule, t0=0.05, warmup=0.0))
    run(config)
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(out / "checkpoints" / "step-00000002")
    run(config)
