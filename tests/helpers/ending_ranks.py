"""Ranks at their end, as functions and programs that ranks run."""

from pathlib import Path

from shared_runs import config_of

from bimkern.train.run import run

# A thread of gloo that comes back to Python only when the interpreter shuts down, which aborts the process.
LATE = """
import sys, time
import torch
from torch import distributed
from bimkern.watchdog import ending_at_once

with ending_at_once(native=True):
    distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    kept = distributed.group.WORLD
    work = distributed.all_reduce(torch.ones(1), async_op=True)
    work.get_future().add_done_callback(lambda _: time.sleep(1))
    distributed.destroy_process_group()
    sys.exit(3)
"""


def threads_left_by(runs):
    """Train what runs say, one after the other; return how many threads of gloo each leaves to the process."""
    left, kept = [], []
    for out, options in runs:
        kept.append(run(config_of("bim_vit_test", out, **options)))  # as a user's own program does
        left.append(gloo_threads())
    return left


def gloo_threads():
    """Return how many threads of this process work for process groups of gloo."""
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum(name.startswith("pt_gloo") for name in names)
