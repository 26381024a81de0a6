"""Training steps of several recipes in turns, `python -m bench compare RECIPE...`, each against the first.

What disturbs the machine disturbs all of them alike, which it does not between the cases of `python -m bench step`.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.entry import STEP_ROUNDS, Case, Entry, Measure, Measured, Run, register
from bench.flops import FORMULA, step_flops
from bench.step_runs import StepRuns, step_runs
from bench.step_table import comparison, titled
from bench.training import DTYPE, batch_and_dtype
from bench.variants import KNOWN

NAME = "compare"
# What a sparse Swin saves, and what a mask for each image costs.
_RECIPES = ("greenmim_swin_base", "greenmim_swin_base_per_image", "simmim_swin_base_224")
_QUICK_RECIPES = ("greenmim_swin_tiny_test", "greenmim_swin_tiny_test_per_image", "simmim_swin_tiny_test")
_BATCH, _QUICK_BATCH = {"cpu": 8, "cuda": 256}, 4


def compare_entry(
    recipes: tuple[str, ...], batch_size: int | None, dtype: str | None = None, *, others: bool = True
) -> Entry:
    """Make the entry for some recipes; without any, for a sparse Swin and the dense one.

    Args:
        recipes: their names.
        batch_size: images a step.
        dtype: of matrix products; None: that of the device.
        others: whether the usual eager loops run too.
    """

    def cases(device: torch.device, quick: bool) -> Iterable[Case]:
        names = recipes or (_QUICK_RECIPES if quick else _RECIPES)
        dims = {"recipes": ",".join(names), "B": batch_size or (_QUICK_BATCH if quick else _BATCH[device.type])}
        yield Case(device=device, dims=dims, dtype=dtype or DTYPE[device.type], pass_name="step")

    return Entry(
        name=NAME,
        summary="Training steps of several recipes in turns, with the usual eager loop of each where one is written.",
        cases=cases,
        measure=partial(measure, others=others),
        notes=FORMULA,
        closing=_comparisons,
        arguments=(*recipes, *batch_and_dtype(batch_size, dtype), *([] if others else ["--no-eager"])),
    )


def measure(case: Case, *, others: bool = True) -> Measure:
    B, names = case.dims["B"], case.dims["recipes"].split(",")
    runs: dict[str, Run] = {}
    steps: dict[str, StepRuns] = {}
    truths: dict[str, Run] = {}
    flops, parameters = {}, {}
    for name in names:
        config = KNOWN[name].config
        one = steps[name] = step_runs(config, case, with_eager=others)
        truths[name] = one.truth
        sides: dict[str, tuple[Run, torch.nn.Module]] = {name: (partial(one.ours.step, 1), one.ours.model)}
        sides |= {f"{name}, {other}": side for other, side in one.others.items()}
        for provider, (run, network) in sides.items():
            runs[provider] = run
            flops[provider] = B * step_flops(config.method)
            parameters[provider] = list(network.parameters())

    def check(provider: str, got: Any, expected: Mapping[str, Tensor]) -> None:
        recipe, _, other = provider.partition(", ")
        steps[recipe].hold(case, provider, got, expected[recipe], other=other)

    label = names[0]
    return Measure(
        ours=runs.pop(label),
        label=label,
        rivals=runs,
        reference=lambda: {recipe: truth() for recipe, truth in truths.items()},
        check=check,
        matrix_flops=flops[label],
        other_flops=flops,
        parameters=parameters,
        items=B,
        min_rounds=STEP_ROUNDS,
        process_too=True,
    )


def _comparisons(measured: Measured) -> str:
    """Compare the first recipe with each of the others, a line each."""
    ((_, rows),) = measured
    parts = [row.provider.partition(", ") for row in rows]
    first, *others = zip([titled(recipe) + comma + other for recipe, comma, other in parts], rows, strict=True)
    return "\n".join(comparison(first, other) for other in others)


register(compare_entry((), None))
