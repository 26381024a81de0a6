"""Several ranks as torchrun starts them, but forked from one server that has imported torch: they start at once."""

import json
import multiprocessing
import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import leftovers
from traces import traced_once
from whole_process import end_with

LIMIT = 240  # seconds
SERVER = multiprocessing.get_context("forkserver")
_PRELOADED = [  # what a run imports, soon or late
    *("torch._dynamo", "matplotlib.backends.backend_agg", "matplotlib.figure"),
    *("bimkern.pretrain", "bimkern.finetune", "bimkern.train.reporting.tensorboard", "rank_processes", "undrawn"),
]
SERVER.set_forkserver_preload(_PRELOADED)


def preload(*modules):
    """Have the server import more, which takes seconds in every process; a server that runs already does not."""
    SERVER.set_forkserver_preload([*_PRELOADED, *modules])


class RankProcesses:
    """Ranks that run a function each, with their output in a folder."""

    def __init__(self, function, size, folder, *arguments, ranks=None, variables=None, pictures=False):
        """Start them, or some; each calls function(*arguments), whose result is JSON, with variables of torchrun.

        Without `pictures`, what they would show is found by all ranks, but not drawn.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, port = folder, free_port()
        self._ranks, self.processes = ranks or range(size), []
        for rank in self._ranks:
            environment = {
                "RANK": f"{rank}",
                "LOCAL_RANK": f"{rank}",
                "WORLD_SIZE": f"{size}",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": f"{port}",
            } | (variables or {})
            given = (function, arguments, environment, folder / f"{rank}", pictures)
            process = SERVER.Process(target=_run, args=given)
            process.start()
            self.processes.append(process)
        leftovers.add(self._kill)

    def wait_for(self, condition, timeout=LIMIT):
        """Wait until a condition holds, while all of them live."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, self.stderr()
            assert all(process.is_alive() for process in self.processes), self.stderr()
            time.sleep(0.02)

    def wait(self, timeout=LIMIT):
        """Wait for all of them; return their exit codes."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        hung = self._kill()
        assert not hung, (hung, self.stderr())
        return [process.exitcode for process in self.processes]

    def _kill(self):
        """Kill those that have not ended, and return them."""
        alive = [process for process in self.processes if process.is_alive()]
        for process in alive:
            process.kill()
            process.join(10)
        return alive

    def results(self, timeout=LIMIT):
        """Wait for all of them, and return what their functions did."""
        assert self.wait(timeout) == [0] * len(self.processes), "".join(self.stderr())[-3000:]
        return [json.loads(self._of(rank, "result")) for rank in self._ranks]

    def stdout(self):
        return [self._of(rank, "stdout") for rank in self._ranks]

    def stderr(self):
        return [self._of(rank, "stderr") for rank in self._ranks]

    def _of(self, rank, what):
        return Path(f"{self._folder / str(rank)}.{what}").read_text()


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def _run(function, arguments, environment, output, pictures):
    import torch
    from undrawn import undrawn

    os.environ.update(environment)
    torch.set_num_threads(1)
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)

    def run():
        with traced_once(), nullcontext() if pictures else undrawn(found=True):
            result = function(*arguments)
        Path(f"{output}.result").write_text(json.dumps(result))

    end_with(run)
