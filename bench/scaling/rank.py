"""One of two ranks: measures in turns, on orders of the parent process, and answers in JSON lines.

python -m bench.scaling.rank BATCH_SIZE
"""

import json
import sys
import time
from dataclasses import asdict
from functools import cache, partial
from statistics import median
from typing import Any, TextIO

import torch

from bench.scaling.methods import Asleep, Method, method
from bench.scaling.model import Phase, typical
from bimkern.distributed.connect import connected
from bimkern.distributed.ranks import ALONE, Ranks

_TIMEOUT_S = 120.0
_TRIES = 5


class Measurements:
    """What one rank can be asked for; both ranks are asked for the same at once."""

    def __init__(self, batch_size: int, ranks: Ranks) -> None:
        self._ranks = ranks
        self._alone = cache(partial(method, batch_size=batch_size, ranks=ALONE))
        self._joined = cache(partial(method, batch_size=batch_size, ranks=ranks))

    def phases(self, name: str) -> list[dict[str, Any]]:
        """Return the phases of a step without communication, the medians of several."""
        alone = self._alone(name)
        alone.step()
        return [asdict(phase) for phase in typical([alone.phases() for _ in range(_TRIES)])]

    def compute(self, name: str, steps: int) -> float:
        """Return the seconds of a step without communication."""
        return self._seconds(self._alone(name), steps)

    def step(self, name: str, steps: int) -> float:
        return self._seconds(self._joined(name), steps)

    def asleep(self, phases: list[dict[str, Any]], at_end: bool, steps: int) -> float:
        """Return the seconds of a step that sleeps through phases."""
        return self._seconds(Asleep([Phase(**phase) for phase in phases], self._ranks, at_end=at_end), steps)

    def all_reduce(self, num_bytes: int) -> float:
        """Return the seconds of one all-reduce, and of nothing else."""
        tensor, taken = torch.zeros(max(1, num_bytes // 4)), []
        for _ in range(_TRIES):
            began = time.perf_counter()
            self._ranks.begin_all_reduce(tensor).wait()
            taken.append(time.perf_counter() - began)
        return median(taken)

    def gradient_bytes(self, name: str) -> int:
        return self._joined(name).gradient_bytes

    def _seconds(self, timed: Method, steps: int) -> float:
        """Time steps in steady state: after the first, and without the wait for the last one's reductions."""
        timed.step()
        began = time.perf_counter()
        for _ in range(steps):
            timed.step()
        taken = time.perf_counter() - began
        timed.finish()
        return taken / steps


def serve(measurements: Measurements, orders: TextIO, answers: TextIO) -> None:
    """Answer orders, a JSON object a line, until they end."""
    for line in orders:
        order = json.loads(line)
        found = getattr(measurements, order.pop("measure"))(**order)
        print(json.dumps(found), file=answers, flush=True)


def main() -> None:
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    with connected("cpu", _TIMEOUT_S) as ranks:
        serve(Measurements(int(sys.argv[1]), ranks), sys.stdin, answers)


if __name__ == "__main__":
    main()
