"""The replay that is timed on a GPU, with an allocator that only counts."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import device_replay
from bench.device_replay import Replay, Worker
from bench.entries import arena
from bench.refcheck import WrongResult
from bimkern.arena import Allocation, Scope, make_plan

SCOPES = [Scope("a", 0, 6, 0, 3), Scope("b", 7, 10, 3, 4)]
ALLOCATIONS = [
    Allocation(0, 100, 1, 2),
    Allocation(0, 200, 3, 8),
    Allocation(0, 300, 4, None),
    Allocation(1, 400, 9, None),
]


class Taken:
    def __init__(self, size, log):
        self.size, self.log = size, log
        log.append(size)

    def __del__(self):
        self.log.append(-self.size)


class Counting:
    """An allocator, and the scopes that it is asked in."""

    def __init__(self):
        self.log = []

    def allocate(self, size):
        return Taken(size, self.log)

    @contextmanager
    def scope(self, name):
        self.log.append(name)
        yield
        self.log.append("")


def test_a_step_is_resimulated_event_by_event():
    counting = Counting()
    plan = make_plan(SCOPES, ALLOCATIONS, ticks=11, alignment=64)
    replay = Replay(plan, counting.allocate, larger=10)
    replay.step(counting.scope)
    assert counting.log == ["a", 1000, -1000, 2000, 3000, "", "b", -2000, 4000, ""]
    counting.log.clear()
    replay.step(counting.scope)
    assert counting.log == ["a", 1000, -1000, 2000, 3000, -3000, "", "b", -2000, 4000, -4000, ""]


@pytest.mark.parametrize("provider", ["plan", "caching"])
def test_a_process_steps_on_command(provider):
    worker = Worker(provider, make_plan(SCOPES, ALLOCATIONS, ticks=11, alignment=64), torch.device("cpu"))
    worker.steps(3)  # two pass, and the arena's first
    assert worker.report()["record"]["plans"] == (0 if provider == "plan" else None)
    worker.steps(4)  # the recorded one, one gets its regions
    report = worker.report()
    assert report["taken_bytes"] == 0  # of a GPU
    record = report["record"]
    assert record["plans"] == (1 if provider == "plan" else None)
    assert record["upstream_calls"] == (0 if provider == "plan" else None)
    larger = [replace(allocation, bytes=8 * allocation.bytes) for allocation in ALLOCATIONS]
    peak = make_plan(SCOPES, larger, ticks=11, alignment=64).peak
    assert record["planned_bytes"] == (peak if provider == "plan" else None)


def test_a_process_that_has_ended_is_an_error(capfd):
    worker = Worker("pool", make_plan(SCOPES, ALLOCATIONS, ticks=11, alignment=64), torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"bench\.device_replay: pool ended with exit code 1"):
        worker.steps(1)
    assert "--arena pool: torch's allocator on a CPU has no pools" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [{"plans": 2}, {"diverged_steps": 1}, {"upstream_calls": 3}])
def test_steps_that_leave_their_plan_are_not_timed(wrong, monkeypatch):
    record = {"plans": 1, "diverged_steps": 0, "upstream_calls": 0}
    steps = []

    def start(provider, plan, device):
        report = {"taken_bytes": 0, "record": record | wrong if provider == "plan" else dict.fromkeys(record)}
        return SimpleNamespace(steps=lambda number: steps.append((provider, number)), report=lambda: report)

    def recorded(case):
        assert case.device.type == "cpu"
        return make_plan(SCOPES, ALLOCATIONS, ticks=11, alignment=64)

    monkeypatch.setattr(device_replay, "Worker", start)
    monkeypatch.setattr(arena, "recorded", recorded)
    case = next(iter(arena.cases(torch.device("cuda"), True)))
    measure = arena.measure(case)
    assert list(measure.providers) == ["plan", "caching", "expandable", "pool"]
    assert measure.items == 10 * len(ALLOCATIONS)
    steps.clear()
    for provider, run in measure.rivals.items():
        measure.check(provider, run(), None)
    assert steps == [("caching", 10), ("expandable", 10), ("pool", 10)]
    with pytest.raises(WrongResult, match="plan: the steps left their plan"):
        measure.check("plan", measure.ours(), None)
