"""Whole training steps of recipes, `python -m bench step RECIPE...`, against the usual eager loop where one is written.

Where none is, a step is held to the definition of its losses, and has no rival.
"""

from typing import Any

from torch import Tensor

from bench.entry import Case, Entry, Measure, Run, register
from bench.flops import step_flops
from bench.step_runs import hold_losses, step_runs
from bench.step_table import table
from bench.training import Defaults, config_of, distinct_steps, recipe_entry

NAME = "step"
BASE_RECIPES = tuple(name for name in distinct_steps() if "_vit_base" in name or "_swin_base" in name)
_DEFAULTS = Defaults(
    recipes=("mae_vit_base", "bim_vit_base"),
    quick_recipes=("mae_vit_test", "bim_vit_test"),
    batch={"cpu": 16, "cuda": 256},
)


def step_entry(recipes: tuple[str, ...], batch_size: int | None) -> Entry:
    """Make the entry for some recipes; without any, for a base model of each kind, and tiny ones for a quick look."""
    return recipe_entry(
        NAME,
        _DEFAULTS,
        recipes,
        batch_size,
        summary="A whole training step of a recipe, against the usual eager loop where one is written.",
        measure=measure,
        closing=table,
    )


def measure(case: Case) -> Measure:
    config = config_of(case)
    runs = step_runs(config, case)
    ours = runs.ours
    slices = min(config.run.slices, case.dims["B"])
    rivals: dict[str, Run] = {f"ours, {slices} slices": lambda: ours.step(slices)} if slices > 1 else {}
    parameters = {name: list(ours.model.parameters()) for name in ("ours", *rivals)}
    if runs.eager is not None:
        rivals["eager"] = runs.run_eager
        parameters["eager"] = list(runs.eager.network.parameters())

    def check(provider: str, got: Any, expected: Tensor) -> None:
        hold_losses(case, provider, got, expected, eager=provider == "eager")

    return Measure(
        ours=lambda: ours.step(slices=1),
        rivals=rivals,
        reference=runs.truth,
        check=check,
        parameters=parameters,
        matrix_flops=case.dims["B"] * step_flops(config.method),
        items=case.dims["B"],
    )


register(step_entry((), None))
