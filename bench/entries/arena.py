"""The allocations of a training step, given out again by a plan and by torch's allocator; `python -m bench arena`.

A step is recorded on a small batch: how many allocations it makes does not depend on the batch. All go through torch's
allocator interface, an allocation and its free together, and write nothing, so that malloc is not charged for fresh
pages.
"""

from collections.abc import Iterable
from typing import Any

import torch

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


def cases(device: torch.device, quick: bool) -> Iterable[Case]:
    for recipe in _QUICK_RECIPES if quick else _RECIPES:
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
    plan, arena = recorded(case), native().HostArena(False)
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
        items=len(plan.blocks),
    )


def nanoseconds(measured: Measured) -> str:
    """Lay out what an allocation and its free take."""
    lines = [f"{'an allocation and its free':28}  {'plan':>8}  {'torch':>8}"]
    for case, rows in measured:
        each = (f"{1e9 / row.items_per_s:5.0f} ns" for row in rows if row.items_per_s)
        lines.append(f"{case.dims['recipe']:28}  {'  '.join(each)}")
    return "\n".join(lines)


register(
    Entry(
        name=NAME,
        summary="The allocations of a training step: places of a plan against torch's allocator.",
        cases=cases,
        measure=measure,
        closing=nanoseconds,
    )
)
