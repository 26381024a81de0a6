"""Profile steps of recipes: the share of every part, the time of a step, and how near it is to the matrix ceiling."""

from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import bench.memory  # noqa: F401  which keeps the profiler quiet
from bench.entry import Case
from bench.flops import step_flops
from bench.profiling.parts import shares
from bench.timing import Ceilings, process_clock, summarize
from bench.training import Ours, config_of, random_images


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of a step of some images goes; seconds are CPU time of the process."""

    recipe: str
    dtype: str
    batch_size: int
    step_s: float
    matrix_share: float  # of the speed of a large matrix product that the step reaches
    parts: dict[str, float]  # shares of the step


def measure(recipe: str, dtype: str, batch_size: int, rounds: int, ceilings: Ceilings) -> Profile:
    """Time some steps of a recipe, and profile as many."""
    dims = {"recipe": recipe, "B": batch_size}
    case = Case(device=torch.device("cpu"), dims=dims, dtype=dtype, pass_name="step")
    config = config_of(case)
    ours = Ours(config, case, random_images(config, case))
    ours.step(slices=1)  # which makes the optimizer's state
    step_s = summarize([process_clock(lambda: ours.step(slices=1)) for _ in range(rounds)]).median
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            with record_function("step"):  # what no operator takes is Python's
                ours.step(slices=1)
    ideal = batch_size * step_flops(config.method) / ceilings.matrix(dtype)
    return Profile(
        recipe=recipe,
        dtype=dtype,
        batch_size=batch_size,
        step_s=step_s,
        matrix_share=ideal / step_s,
        parts=shares(profiler.events()),
    )
