"""Run one case: check every provider, time them in turns, weigh their memory, and give the rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.entry import Case, Entry, Measure, Run
from bench.memory import extra_bytes
from bench.passes import bind
from bench.refcheck import WrongResult
from bench.results import Row, provenance
from bench.timing import Ceilings, Clock, Times, clock_for, measure, noting_process_time, summarize
from bimkern.ops import backends
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker

_BUDGET, _QUICK_BUDGET = 2.0, 0.02  # seconds a case

Medians = Mapping[str, float]  # provider -> seconds


@dataclass(kw_only=True)
class Bench:
    """Where and how cases are run; a ceiling is measured once, when it is first asked for."""

    device: torch.device
    quick: bool
    rounds: int | None = None
    process_time: bool = False  # of a CPU
    clock: Clock = field(init=False)
    ceilings: Ceilings = field(init=False)

    def __post_init__(self) -> None:
        self.clock = clock_for(self.device, process_time=self.process_time)
        self.ceilings = Ceilings(self.device, self.clock, quick=self.quick)

    def seconds(self, runs: Mapping[str, Run], measure_: Measure) -> dict[str, list[float]]:
        budget, least = _QUICK_BUDGET if self.quick else _BUDGET, measure_.min_rounds
        return measure(runs, self.clock, budget=budget, rounds=self.rounds, min_rounds=least, before=measure_.before)

    def both_seconds(
        self, runs: Mapping[str, Run], measure_: Measure
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Time runs, and by the CPU time of the process too where a measure asks for it; else that is empty."""
        if not measure_.process_too or self.device.type != "cpu":
            return self.seconds(runs, measure_), {}
        process: dict[str, list[float]] = {name: [] for name in runs}
        noting = {name: noting_process_time(run, process[name]) for name, run in runs.items()}
        seconds = self.seconds(noting, measure_)
        return seconds, {name: process[name][-len(seconds[name]) :] for name in runs}  # without the warm-up


def prepare(entry: Entry, case: Case) -> tuple[Measure, dict[str, Run]]:
    """Make a case ready to run; every provider has shown that it computes the right thing.

    Raises:
        WrongResult: one does not.
    """
    torch.compiler.reset()  # or the shapes of earlier cases count against the limit of recompilations
    measure_ = entry.measure(case)
    runs, truth = bind(case, measure_)
    expected = truth()
    for provider, run in runs.items():
        try:
            measure_.check(provider, run(), expected)
        except WrongResult as error:
            raise WrongResult(f"{entry.name} {case.key}, {error}") from None
    return measure_, runs


def medians(bench: Bench, entry: Entry, case: Case) -> Medians:
    """Time a case and give nothing but medians."""
    measure_, runs = prepare(entry, case)
    return {name: summarize(times).median for name, times in bench.seconds(runs, measure_).items()}


def rows(bench: Bench, entry: Entry, case: Case, cold: Medians) -> list[Row]:
    """Check and measure all providers of a case."""
    measure_, runs = prepare(entry, case)
    extra = {name: extra_bytes(run, bench.device) for name, run in runs.items()}
    seconds, process = bench.both_seconds(runs, measure_)
    times = {name: summarize(values) for name, values in seconds.items()}
    first = times[measure_.label].median
    served = backends().get(entry.name, {}).get(bench.device.type)
    common = provenance(bench.device)
    return [
        Row(
            op=entry.name,
            provider=name,
            pass_=case.pass_name,
            shape=case.shape,
            dtype=case.dtype,
            backend=served.backend if served and name == measure_.label else "",
            rounds=len(seconds[name]),
            cold_median_us=cold[name] * 1e6 if name in cold else None,
            process_median_us=summarize(process[name]).median * 1e6 if name in process else None,
            ratio=time.median / first,
            extra_bytes=extra[name],
            live_bytes=_live_bytes(measure_, name),
            **_rates(measure_, name, time),
            **_ceiling(bench, case, measure_, name, time),
            **common,
        )
        for name, time in times.items()
    ]


def _live_bytes(measure_: Measure, provider: str) -> int | None:
    """Count what lives at once in a step; the check has run one, so that the optimizer's state exists."""
    if provider not in measure_.parameters:
        return None
    with AllocationTracker(measure_.parameters[provider], counter := LiveBytes()):
        measure_.providers[provider]()
    return counter.peak


def _rates(measure_: Measure, provider: str, time: Times) -> dict[str, Any]:
    flops, items = measure_.flops(provider), measure_.items

    def per_second(amount: int, unit: float) -> float | None:
        return amount / unit / time.median if amount else None

    return {
        "median_us": time.median * 1e6,
        "p20_us": time.p20 * 1e6,
        "p80_us": time.p80 * 1e6,
        "gb_per_s": per_second(measure_.bytes, 1e9),
        "tflop_per_s": per_second(flops, 1e12),
        "items_per_s": per_second(items, 1),
        "gflop_per_item": flops / items / 1e9 if flops and items else None,
    }


def _ceiling(bench: Bench, case: Case, measure_: Measure, provider: str, time: Times) -> dict[str, Any]:
    """Return which ceiling binds, its height in GB/s or TFLOP/s, and what share of it is reached."""
    choices: list[tuple[float, str, float]] = []
    if measure_.bytes:
        choices.append((measure_.bytes / bench.ceilings.copy, "copy", bench.ceilings.copy / 1e9))
    if flops := measure_.flops(provider):
        product = bench.ceilings.matrix(case.dtype)
        choices.append((flops / product, "matrix", product / 1e12))
    if not choices:
        return {"share": None, "ceiling": "", "ceiling_value": None}
    ideal, name, height = max(choices)
    return {"share": ideal / time.median, "ceiling": name, "ceiling_value": height}
