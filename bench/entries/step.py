"""Whole training steps of recipes, `python -m bench step RECIPE...`, against the usual eager loop where one is written.

Where none is, a step is held to the definition of its losses, and has no rival.
"""

from functools import partial
from typing import Any

from torch import Tensor

from bench.eager.form import find_form
from bench.eager.loop import usual_loop
from bench.entry import Case, Entry, Measure, Run, register
from bench.flops import step_flops
from bench.step_table import table
from bench.training import SAME_MASK, Defaults, Ours, config_of, distinct_steps, hold, random_images, recipe_entry

NAME = "step"
BASE_RECIPES = tuple(name for name in distinct_steps() if "_vit_base" in name)
_DEFAULTS = Defaults(
    recipes=("mae_vit_base", "bim_vit_base"),
    quick_recipes=("mae_vit_test", "bim_vit_test"),
    batch={"cpu": 16, "cuda": 256},
)
_OTHER_MASK = 5e-2  # ours and the truth see the same mask; the timed eager loop draws its own, as it always does


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
    images = random_images(config, case)
    ours = Ours(config, case, images)
    slices = min(config.run.slices, case.dims["B"])
    rivals: dict[str, Run] = {f"ours, {slices} slices": lambda: ours.step(slices)} if slices > 1 else {}
    parameters = {name: list(ours.model.parameters()) for name in ("ours", *rivals)}
    truth: Run = ours.losses
    if form := find_form(config.method):
        usual, noise = usual_loop(form, config.optim, case.torch_dtype, case.device), ours.noise()
        usual.network.load_state_dict(ours.model.state_dict())
        rivals["eager"] = lambda: usual.step(images)
        parameters["eager"] = list(usual.network.parameters())
        truth = partial(usual.step, images, noise)

    def check(provider: str, got: Any, expected: Tensor) -> None:
        hold(provider, got, expected, _OTHER_MASK if provider == "eager" else SAME_MASK[case.dtype])

    return Measure(
        ours=lambda: ours.step(slices=1),
        rivals=rivals,
        reference=truth,
        check=check,
        parameters=parameters,
        matrix_flops=case.dims["B"] * step_flops(config.method),
        items=case.dims["B"],
    )


register(step_entry((), None))
