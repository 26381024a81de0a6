"""Every entry of `python -m bench` for pytest-benchmark: `pytest bench --benchmark-only`.

The table holds ours; the medians of all providers, timed in turns, are beside it in `extra_info` (`--benchmark-json`).
Malloc is that of the pytest process; figures that count come from `python -m bench`.
"""

from typing import Any

import pytest
import torch

from bench.entry import Case, Entry, discover
from bench.runner import Bench, prepare
from bench.timing import summarize

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = [
    pytest.param(entry, case, id=f"{entry.name} {case.device} {case.key}")
    for entry in discover().values()
    for device in DEVICES
    for case in entry.cases(torch.device(device), False)
]


@pytest.mark.parametrize(("entry", "case"), CASES)
def test_entry(benchmark: Any, entry: Entry, case: Case) -> None:
    measure, runs = prepare(entry, case)
    benchmark.group = f"{entry.name} {case.device}"
    if benchmark.disabled:
        benchmark(runs[measure.label])
        return
    seconds = Bench(device=case.device, quick=False).seconds(runs, measure)
    benchmark.extra_info |= {f"{name}, s": summarize(values).median for name, values in seconds.items()}

    def run() -> None:
        runs[measure.label]()
        if case.device.type == "cuda":
            torch.cuda.synchronize(case.device)

    rounds = len(seconds[measure.label])
    benchmark.pedantic(run, setup=measure.before.get(measure.label), rounds=rounds, warmup_rounds=1)
