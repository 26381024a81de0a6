"""Whole training steps of recipes, `python -m bench step RECIPE...`, against the usual ones where they are written.

Those are an eager loop and, for MAE's networks, Hugging Face's ViTMAE where transformers is installed. Where there is
none, a step is held to the definition of its losses, and has no rival.
"""

from functools import partial
from typing import Any

from torch import Tensor

from bench.entry import STEP_ROUNDS, Case, Entry, Measure, Run, register
from bench.flops import step_flops
from bench.step_runs import step_runs
from bench.step_table import again_name, sliced_name, table
from bench.training import Defaults, config_of, distinct_steps, recipe_entry
from bimkern.mim import recompute

NAME = "step"
BASE_RECIPES = tuple(name for name in distinct_steps() if "_vit_base" in name or "_swin_base" in name)
_DEFAULTS = Defaults(
    recipes=("mae_vit_base", "bim_vit_base"),
    quick_recipes=("mae_vit_test", "bim_vit_test"),
    batch={"cpu": 16, "cuda": 256},
)


def step_entry(
    recipes: tuple[str, ...],
    batch_size: int | None,
    dtype: str | None = None,
    again: str = recompute.NONE,
    *,
    others: bool = True,
) -> Entry:
    """Make the entry for some recipes; without any, for a base model of each kind, and tiny ones for a quick look.

    Args:
        recipes: their names.
        batch_size: images a step.
        dtype: of matrix products; None: that of the device.
        again: layers that run again in the backward pass, in a step that is measured beside the others.
        others: whether the usual steps run too.
    """
    return recipe_entry(
        NAME,
        _DEFAULTS,
        recipes,
        batch_size,
        dtype,
        summary="A whole training step of a recipe, against the usual ones where they are written.",
        measure=partial(measure, again=again, others=others),
        closing=table,
        options=(*(() if again == recompute.NONE else ("--recompute", again)), *(() if others else ("--no-eager",))),
    )


def measure(case: Case, again: str = recompute.NONE, *, others: bool = True) -> Measure:
    config = config_of(case)
    runs = step_runs(config, case, with_eager=others, with_hf=others)
    ours = runs.ours
    slices = min(config.run.slices, case.dims["B"])
    rivals: dict[str, Run] = {sliced_name(slices): lambda: ours.step(slices)} if slices > 1 else {}
    if again != recompute.NONE:
        rivals[again_name(slices, again)] = lambda: ours.step(slices, recomputed=again)
    parameters = {name: list(ours.model.parameters()) for name in ("ours", *rivals)}
    for name, (run, network) in runs.others.items():
        rivals[name] = run
        parameters[name] = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def check(provider: str, got: Any, expected: Tensor) -> None:
        runs.hold(case, provider, got, expected, other=provider if provider in runs.others else "")

    return Measure(
        ours=lambda: ours.step(slices=1),
        rivals=rivals,
        reference=runs.truth,
        check=check,
        parameters=parameters,
        matrix_flops=case.dims["B"] * step_flops(config.method),
        items=case.dims["B"],
        min_rounds=STEP_ROUNDS,
        process_too=True,
    )


register(step_entry((), None))
