"""Kill processes that save without end, and look at what each leaves: python killed_savers.py FOLDER KILLS.

Prints how many kills fell into a save. A warm process forks the savers, since a fresh interpreter takes seconds to come
to its first save; it computes on one thread, as forked threads are gone.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.checkpoint.store import Checkpoint

SECONDS = 0.03  # of saving before the latest kill; a save takes about a tenth


def checkpoint(step):
    """A checkpoint whose every number is its step."""
    model = {f"w{i}": torch.full((64, 256), float(step)) for i in range(4)}
    return Checkpoint(step, model, {f"{name}/exp_avg": tensor for name, tensor in model.items()}, {})


def save_without_end(folder, first, acknowledge):
    with AsyncSaver(folder, every=1) as saver:
        for step in range(first, 10**9):
            saver.save(checkpoint(step), random.random(), first=lambda: None, required=False)
            saver.wait()
            os.write(acknowledge, f"{step} ".encode())


def killed_saver(folder, first):
    """Save from step `first` on until killed; return the last step that was acknowledged."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        random.seed(first)
        save_without_end(folder, first, writing)
    os.close(writing)
    acknowledged = os.read(reading, 100)
    time.sleep(random.uniform(0, SECONDS))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    while more := os.read(reading, 2**16):
        acknowledged += more
    os.close(reading)
    return int(acknowledged.split()[-1])


def main(folder, kills):
    torch.set_num_threads(1)
    step, halfway = 0, 0
    for _ in range(kills):
        acknowledged = killed_saver(folder, step + 1)
        halfway += any(path.name.startswith(".") for path in folder.iterdir())
        latest = checkpoints.load_latest(folder)
        step = latest.step
        assert step in (acknowledged, acknowledged + 1), (step, acknowledged)
        assert all(
            (tensor == step).all() for tensors in (latest.model, latest.optimizer) for tensor in tensors.values()
        )
        left = sorted(folder.iterdir())
        assert len(left) <= 4, left  # the last two, the best, and one that was not yet deleted
        for path in left:
            checkpoints.load(path)
    print(halfway)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
