"""The allocations of a training step, replayed by a plan and by torch's allocator; `python -m bench arena`.

A step is recorded on a small batch: how many allocations it makes does not depend on the batch. All go through torch's
allocator interface, an allocation and its free together, and write nothing, so that malloc is not charged for fresh
pages. On a GPU (bench/device_replay.py) every allocator has a process, and a turn is several steps and the wait for the
GPU: what Python takes is part of it and the same for all, and the two lines through a pipe are shared by the steps.
"""

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from bench import device_replay
from bench.entry import Case, Entry, Measure, Measured, register
from bench.refcheck import WrongResult
from bench.training import Ours, config_of, random_images
from bimkern.arena import Arena, Plan
from bimkern.arena._native import native
from bimkern.arena.plan import to_native

NAME = "arena"
_RECIPES = ("mae_vit_base", "bim_vit_base", "localmim_vit_base")
_QUICK_RECIPES = ("mae_vit_test", "bim_vit_test")
_BATCH = 2  # images, decoded in as many slices
_RECORDING = 2  # steps: one passes, one is recorded
_SETTLING = _RECORDING + 2  # and one gets its regions, one needs nothing more
_GPU_SETTLING = _SETTLING + 2  # two pass before the arena is made
_GPU_STEPS = 10  # of a turn


def cases(device: torch.device, quick: bool) -> Iterable[Case]:
    few = _RECIPES[:2] if device.type == "cuda" else _RECIPES  # starting the processes takes the time
    for recipe in _QUICK_RECIPES if quick else few:
        dims = {"recipe": recipe, "B": _BATCH, "slices": _BATCH}
        yield Case(device=device, dims=dims, dtype="float32", pass_name="replay")


def recorded(case: Case) -> Plan:
    """Return the plan of a recipe's second step."""
    config, arena = config_of(case), Arena(case.device)
    ours = Ours(config, case, random_images(config, case))
    for _ in range(_RECORDING):
        ours.step(case.dims["slices"], scope=arena.scope)
    return arena.plan()


def measure(case: Case) -> Measure:
    plan = recorded(replace(case, device=torch.device("cpu")))
    return _on_a_gpu(case, plan) if case.device.type == "cuda" else _on_the_host(plan)


def _on_a_gpu(case: Case, plan: Plan) -> Measure:
    workers = {name: device_replay.Worker(name, plan, case.device) for name in device_replay.PROVIDERS}
    for name, worker in workers.items():
        worker.steps(_GPU_SETTLING)
        taken = worker.report()["taken_bytes"]
        print(f"{case.dims['recipe']} {name}: {taken / 2**20:.0f} MiB taken from the GPU")

    def check(provider: str, got: Any, expected: Any) -> None:
        """Make sure that the plan served every allocation."""
        record = workers[provider].report()["record"]
        if provider == "plan" and (record["plans"] != 1 or record["diverged_steps"] or record["upstream_calls"]):
            raise WrongResult(f"{provider}: the steps left their plan: {record}")

    label, *rivals = runs = {name: functools.partial(worker.steps, _GPU_STEPS) for name, worker in workers.items()}
    return Measure(
        ours=runs[label],
        label=label,
        rivals={name: runs[name] for name in rivals},
        check=check,
        items=_GPU_STEPS * len(plan.allocations),
    )


def _on_the_host(plan: Plan) -> Measure:
    arena = native().HostArena(False)
    with_arena, with_malloc = (native().Rerun(to_native(plan)[0]) for _ in range(2))
    for _ in range(_SETTLING):
        with_arena.step(arena)

    def check(provider: str, got: Any, expected: Any) -> None:
        """Make sure that the plan served every allocation."""
        statistics = arena.statistics()
        if statistics["plans"] != 1 or statistics["diverged_steps"] or statistics["upstream_calls_last_step"]:
            raise WrongResult(f"{provider}: the steps left their plan: {statistics}")

    return Measure(
        ours=lambda: with_arena.step(arena),
        label="plan",
        rivals={"torch": lambda: with_malloc.step(None)},
        check=check,
        items=len(plan.allocations),
    )


def nanoseconds(measured: Measured) -> str:
    """Lay out what an allocation and its free take."""
    providers = (f"{row.provider:>10}" for row in measured[0][1])
    lines = [f"{'an allocation and its free':28}  {'  '.join(providers)}"]
    for case, rows in measured:
        each = (f"{1e9 / row.items_per_s:7.0f} ns" for row in rows if row.items_per_s)
        lines.append(f"{case.dims['recipe']:28}  {'  '.join(each)}")
    return "\n".join(lines)


register(
    Entry(
        name=NAME,
        summary="The allocations of a training step: the offsets of a plan against torch's allocator.",
        cases=cases,
        measure=measure,
        closing=nanoseconds,
    )
)
