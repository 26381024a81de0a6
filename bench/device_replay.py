"""The allocations of a step on a GPU, by torch's allocators and the arena: one process each, which steps on command.

An allocator is chosen before a GPU is first used: torch's caching allocator as it is, with expandable segments, and
with a pool for the steps; and a plan. A process reads the plan, then commands: a number of steps to replay, answered
with one byte when the GPU has done them, or "report", answered with JSON. It has not run on a GPU yet.
"""

import functools
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from bimkern.arena import Plan
from bimkern.mim.flow import ScopeFactory
from bimkern.train.config.run import ArenaName
from bimkern.train.memory import allocator

PROVIDERS: dict[str, ArenaName] = {"plan": "plan", "caching": "off", "expandable": "off", "pool": "pool"}
_SETTINGS = {"expandable": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}
_LARGER = 8  # times the recorded bytes
_REPORT = "report"


class Replay:
    """The events of a step, in order. allocate takes bytes and returns an object that frees them when deleted."""

    def __init__(self, plan: Plan, allocate: Callable[[int], object], larger: int = 1) -> None:
        self._allocate = allocate
        self._live: dict[int, object] = {}  # by allocation
        self._sizes = [larger * allocation.bytes for allocation in plan.allocations]
        self._names = [scope.name for scope in plan.scopes]
        events = [(allocation.begin, "allocate", i) for i, allocation in enumerate(plan.allocations)]
        events += [
            (allocation.end % plan.ticks, "free", i)
            for i, allocation in enumerate(plan.allocations)
            if allocation.end is not None and plan.slots(allocation) == 1
        ]
        events += [(scope.begin, "open", i) for i, scope in enumerate(plan.scopes)]
        events += [(scope.end, "close", i) for i, scope in enumerate(plan.scopes)]
        self._events = [(kind, i) for _, kind, i in sorted(events)]

    def step(self, scope: ScopeFactory) -> None:
        """Run the step once; what lives into the next one dies there, when its successor is born or before."""
        inside: AbstractContextManager[object] | None = None
        for kind, i in self._events:
            if kind == "allocate":
                self._live[i] = self._allocate(self._sizes[i])
            elif kind == "free":
                self._live.pop(i, None)  # absent in the first step: of the step before
            elif kind == "open":
                inside = scope(self._names[i])
                inside.__enter__()
            else:
                assert inside is not None
                inside.__exit__(None, None, None)


class Worker:
    """A process that replays a plan with one provider, until it is garbage-collected."""

    def __init__(self, provider: str, plan: Plan, device: torch.device) -> None:
        self.provider = provider
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.device_replay", provider, str(device)],
            env=os.environ | _SETTINGS.get(provider, {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        weakref.finalize(self, self._process.kill)
        self._send(json.dumps(plan.to_json()))

    def steps(self, number: int) -> None:
        """Replay steps, and wait until the GPU has done them, and for nothing else.

        Raises:
            RuntimeError: the process has ended; its own words are on stderr.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the bench queues work ahead on a GPU, which would cover the steps
        self._send(str(number))
        self._answer()

    def report(self) -> dict[str, Any]:
        """Return the memory's record and the bytes that the GPU has less since the first step.

        Raises:
            RuntimeError: the process has ended; its own words are on stderr.
        """
        self._send(_REPORT)
        report: dict[str, Any] = json.loads(self._answer())
        return report

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"bench.device_replay: {self.provider} ended with exit code {self._process.wait()}")
        return answer

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the next answer will be missing


def main(provider: str, device_name: str) -> None:
    device = torch.device(device_name)
    memory = allocator.choose(PROVIDERS[provider], device, compiled=False)  # before the GPU is touched
    plan = Plan.from_json(json.loads(sys.stdin.readline()))
    on_gpu = device.type == "cuda"
    free_before = torch.cuda.mem_get_info(device)[0] if on_gpu else 0
    replay = Replay(plan, functools.partial(torch.empty, dtype=torch.uint8, device=device), _LARGER)
    for command in sys.stdin:
        if command.strip() == _REPORT:
            taken = free_before - torch.cuda.mem_get_info(device)[0] if on_gpu else 0
            print(json.dumps({"taken_bytes": taken, "record": memory.record()}), flush=True)
            continue
        for _ in range(int(command)):
            replay.step(memory.scope(provider))
        if on_gpu:
            torch.cuda.synchronize(device)
        print(flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
