"""Percentiles, turns and ceilings, on clocks that tell what the test wants."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.timing import Ceilings, clock_for, in_turns, measure, noting_process_time, percentile, summarize


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("percent", [0, 20, 50, 80, 100])
def test_percentile_is_numpys(count, percent):
    values = torch.rand(count, dtype=torch.float64).tolist()
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_a_summary_is_in_order():
    times = summarize(torch.rand(17).tolist())
    assert times.p20 <= times.median <= times.p80


def test_providers_take_turns():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    ready = {"b": lambda: calls.append("ready b")}

    def clock(run):
        run()
        return float(len(calls))

    seconds = in_turns(runs, clock, 4, ready)
    assert "".join(calls).replace("ready b", "-") == "a-bc" + "-bca" + "ca-b" + "a-bc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize(
    ("second", "rounds", "expected"), [(1.0, None, 3), (1e-9, None, 200), (0.5, None, 10), (1.0, 7, 7)]
)
def test_rounds_fill_a_budget(second, rounds, expected):
    seconds = measure({"a": int, "b": int}, lambda run: second, budget=10.0 if second == 0.5 else 1.0, rounds=rounds)
    assert [len(values) for values in seconds.values()] == [expected, expected]


def test_fewer_rounds_than_asked_for_never_fit():
    seconds = measure({"a": int}, lambda run: 1.0, budget=1.0, min_rounds=7)
    assert len(seconds["a"]) == 7


def test_cpu_time_is_noted_beside():
    noted = []
    assert noting_process_time(lambda: sum(range(10**5)), noted)() == sum(range(10**5))
    assert len(noted) == 1
    assert 0 < noted[0] < 1


def test_what_other_processes_compute_is_no_time_of_this_one():
    def run():
        subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)

    cpu = torch.device("cpu")
    assert clock_for(cpu, process_time=True)(run) < clock_for(cpu)(run) / 2


def test_ceilings_count_both_ways_of_a_copy_and_two_operations_a_multiply_add():
    ran = []

    def clock(run):
        ran.append(run())
        return 0.5

    ceilings = Ceilings(torch.device("cpu"), clock, quick=True)
    copied = ceilings.copy
    assert copied == 2 * ran[-1].nbytes / 0.5
    assert (ran[-1] == 1).all(), "nothing was copied"
    assert ceilings.matrix("bfloat16") == 2 * ran[-1].shape[0] ** 3 / 0.5
    assert ran[-1].dtype == torch.bfloat16
    varied = iter([9.0, *range(1, 11)])  # the first is the warm-up
    assert Ceilings(torch.device("cpu"), lambda run: next(varied), quick=True).copy == 2 * ran[0].nbytes / 5.5, (
        "a median"
    )
    runs = len(ran)
    assert (ceilings.copy, len(ran)) == (copied, runs), "a ceiling is measured once"
