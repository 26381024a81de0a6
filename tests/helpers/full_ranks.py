"""Runs of ranks that share out layers as well, as functions that ranks import."""

import os

from shared_runs import config_of, out_of_memory
from torch.distributed.tensor import DTensor

from bimkern.pretrain import main
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


def command_without_memory(arguments):
    """Run a command; rank 1 runs out of memory in the third step."""
    if os.environ["RANK"] == "1":
        out_of_memory()
    main(arguments)
