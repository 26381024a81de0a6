"""`python -m bench.device_replay [RECIPE...]`: the allocations of a training step on a GPU, by torch's allocators and the arena.

The step is recorded on the CPU with a small batch and replayed at the size of a large one. Every provider has a process
of its own, since an allocator is chosen before a GPU is first used: torch's caching allocator as it is, with expandable
segments, and with a pool for the steps; and a plan. A line for each: nanoseconds for an allocation with its free, of
which Python's own part is the same for all, and bytes that the GPU has less in the end. It never ran on one yet.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from bimkern.arena import Arena, Plan
from bimkern.mim.flow import MicroBatch, Scope
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train import step_memory
from bimkern.train.config import ArenaName
from bimkern.train.optim import GroupOptimizer

PROVIDERS: dict[str, ArenaName] = {"caching": "off", "expandable": "off", "pool": "pool", "plan": "plan"}
_SETTINGS = {"expandable": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}
_RECIPES = ["bim_vit_base"]
_BATCH, _SLICES = 2, 2
_LARGER = 32  # times the recorded bytes
_WARM_UP, _ROUNDS = 8, 50
_CPU = torch.device("cpu")


def recorded(recipe: str) -> Plan:
    """Return the plan of a recipe's second step."""
    config = RECIPES[recipe].config
    flow, encoder = config.method.flow, config.method.encoder
    model, arena = MIM(config.method), Arena()
    updates = [GroupOptimizer(*group, config.optim, device=_CPU, fp16=False) for group in flow.partition(model).items()]
    images = torch.randint(0, 256, (_BATCH, encoder.channels, *2 * [encoder.image_size]), dtype=torch.uint8)
    for step in range(2):
        batch = MicroBatch(images, model.views(images, torch.arange(_BATCH), seed=step))
        flow.step(model, [batch], updates, slices=_SLICES, scope=arena.scope)
    return arena.plan()


class Replay:
    """The events of a step, in order. allocate takes bytes and returns what frees them when it is let go."""

    def __init__(self, plan: Plan, allocate: Callable[[int], object], larger: int = 1) -> None:
        self._allocate = allocate
        self._live: dict[int, object] = {}  # by block
        self._sizes = [larger * block.bytes for block in plan.blocks]
        self._names = [scope.name for scope in plan.scopes]
        events = [(block.begin, "allocate", i) for i, block in enumerate(plan.blocks)]
        events += [(block.end, "free", i) for i, block in enumerate(plan.blocks) if block.end is not None]
        events += [(scope.begin, "open", i) for i, scope in enumerate(plan.scopes)]
        events += [(scope.end, "close", i) for i, scope in enumerate(plan.scopes)]
        self._events = [(kind, i) for _, kind, i in sorted(events)]

    def step(self, scope: Scope) -> None:
        """Run the step once; what lives into the next one dies there, when its successor is born."""
        inside: AbstractContextManager[object] | None = None
        for kind, i in self._events:
            if kind == "allocate":
                self._live[i] = self._allocate(self._sizes[i])
            elif kind == "free":
                del self._live[i]
            elif kind == "open":
                inside = scope(self._names[i])
                inside.__enter__()
            else:
                assert inside is not None
                inside.__exit__(None, None, None)


def measure(provider: str, plan: Plan) -> dict[str, float]:
    """Replay a plan on a GPU in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        plan.save(path)
        done = subprocess.run(
            [sys.executable, "-m", "bench.device_replay", "--provider", provider, "--plan", str(path)],
            env=os.environ | _SETTINGS.get(provider, {}),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"bench.device_replay: {provider} failed: {done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _measure_here(provider: str, plan: Plan) -> dict[str, float]:
    device = torch.device("cuda", 0)
    memory = step_memory.choose(PROVIDERS[provider], device, compiled=False)  # before the GPU is touched
    torch.cuda.set_device(device)
    free_before, _ = torch.cuda.mem_get_info(device)
    replay = Replay(plan, functools.partial(torch.empty, dtype=torch.uint8, device=device), _LARGER)
    times = []
    for _ in range(_WARM_UP + _ROUNDS):
        scope = memory.scope(provider)
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        replay.step(scope)
        times.append((time.perf_counter() - start) / len(plan.blocks))
    low, median, high = (1e9 * statistics.quantiles(times[_WARM_UP:], n=10)[decile] for decile in (1, 4, 7))
    torch.cuda.synchronize(device)
    free_after, _ = torch.cuda.mem_get_info(device)
    return {"ns": median, "ns_p20": low, "ns_p80": high, "taken_bytes": free_before - free_after}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.device_replay", description=__doc__)
    parser.add_argument("recipes", nargs="*", default=_RECIPES)
    parser.add_argument("--provider", choices=PROVIDERS, help="measure one of them in this process")
    parser.add_argument("--plan", type=Path, help="of which step")
    given: Any = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench.device_replay: torch sees no CUDA device", file=sys.stderr)
        return 2
    if given.provider:
        print(json.dumps(_measure_here(given.provider, Plan.load(given.plan))))
        return 0
    for recipe in given.recipes:
        plan = recorded(recipe)
        for provider in PROVIDERS:
            found = measure(provider, plan)
            print(
                f"{recipe} {provider:10} {found['ns']:.0f} ns ({found['ns_p20']:.0f}..{found['ns_p80']:.0f}) an "
                f"allocation, {found['taken_bytes'] / 2**20:.1f} MiB taken, plan {_LARGER * plan.peak / 2**20:.1f} MiB",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
