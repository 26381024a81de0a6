"""Time providers in turns, so that whatever disturbs the machine disturbs all of them alike."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.entry import MIN_ROUNDS, Run
from bimkern.models.product import multiply

Clock = Callable[[Run], float]

_WARM_UP = 1  # rounds; the check has run, and compiled, everything before
_MAX_ROUNDS = 200
_LEAD_CYCLES = 2_000_000  # about a millisecond


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one call."""

    median: float
    p20: float
    p80: float


def summarize(seconds: Sequence[float]) -> Times:
    return Times(median=percentile(seconds, 50), p20=percentile(seconds, 20), p80=percentile(seconds, 80))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, between neighbors by linear interpolation."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def in_turns(
    runs: Mapping[str, Run], clock: Clock, rounds: int, before: Mapping[str, Run] | None = None
) -> dict[str, list[float]]:
    """Call every provider once a round and return the seconds of each call.

    The order turns by one place a round, so that no provider always runs after the same neighbor.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if before and name in before:
                before[name]()
            seconds[name].append(clock(runs[name]))
    return seconds


def measure(
    runs: Mapping[str, Run],
    clock: Clock,
    *,
    budget: float,
    rounds: int | None = None,
    min_rounds: int = MIN_ROUNDS,
    before: Mapping[str, Run] | None = None,
) -> dict[str, list[float]]:
    """Warm up, then time in turns: `rounds` rounds, or as many as fit into budget seconds, within limits."""
    warm = in_turns(runs, clock, _WARM_UP, before)
    once = sum(min(seconds) for seconds in warm.values())
    return in_turns(runs, clock, rounds or min(max(int(budget / once), min_rounds), _MAX_ROUNDS), before)


def noting_process_time(run: Run, seconds: list[float]) -> Run:
    """Return a run that also notes the CPU time of all threads of the process, one number a call."""

    def noted() -> Any:
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
        return result

    return noted


def cpu_clock(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def process_clock(run: Run) -> float:
    """Time the CPUs of all threads of the process: what others compute meanwhile does not count."""
    start = time.process_time()
    run()
    return time.process_time() - start


class CudaClock:
    """Time on the device: between two events, with nothing useful in its L2 cache at the start.

    The cache is emptied by reading another buffer (what a write leaves behind would be written back on the time of the
    op). Then the device sleeps while the host enqueues, so that what is timed is the device and not Python, as in a
    training step, where the host is ahead.
    """

    def __init__(self, device: torch.device) -> None:
        size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self._device = device
        self._flush = torch.zeros(size // 4, dtype=torch.float32, device=device)

    def __call__(self, run: Run) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self._device):
            self._flush.sum()
            torch.cuda._sleep(_LEAD_CYCLES)
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1e3


def clock_for(device: torch.device, *, process_time: bool = False) -> Clock:
    if device.type == "cuda":
        return CudaClock(device)
    return process_clock if process_time else cpu_clock


class Ceilings:
    """What this device reaches in the same run, as medians: a large copy, and a large matrix product."""

    def __init__(self, device: torch.device, clock: Clock, *, quick: bool) -> None:
        self._device, self._clock = device, clock
        large = device.type == "cuda"
        self._copy_bytes = 2**22 if quick else 2**30 if large else 2**28
        self._side = 1024 if quick else 8192 if large else 2048  # less leaves cores idle
        self._matrix: dict[str, float] = {}
        self._copy: float | None = None

    @property
    def copy(self) -> float:
        """Bytes a second, read and written."""
        if self._copy is None:
            source = torch.ones(self._copy_bytes // 4, device=self._device)
            target = torch.empty_like(source)
            self._copy = 2 * self._copy_bytes / self._median(lambda: target.copy_(source))
        return self._copy

    def matrix(self, dtype: str) -> float:
        """Operations a second (a multiply-add is two) of a square product of random numbers, in the faster library."""
        if dtype not in self._matrix:
            a, b = (torch.randn(self._side, self._side, device=self._device).to(getattr(torch, dtype)) for _ in "ab")
            out = torch.empty_like(a)
            of_torch, of_ours = (lambda: torch.mm(a, b, out=out)), (lambda: multiply(a, b, None, None))
            self._matrix[dtype] = 2 * self._side**3 / min(map(self._median, (of_torch, of_ours)))
        return self._matrix[dtype]

    def _median(self, run: Run) -> float:
        return summarize(measure({"ceiling": run}, self._clock, budget=0.0, rounds=10)["ceiling"]).median
