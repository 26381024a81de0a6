"""The allocations of a training step, replayed by the arena and given out by malloc: `pytest bench/test_arena.py`.

Both go through torch's allocator interface, an allocation and its free together. Recorded on a small batch: the number
of allocations is that of any batch. `extra_info` has nanoseconds for each, and how far the plan is above the bound.
"""

from typing import Any

import pytest
import torch

from bimkern.arena import Arena, Plan, make_plan
from bimkern.arena._native import native
from bimkern.arena.plan import to_native
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.optim import GroupOptimizer

BATCH, SLICES = 2, 2
WARM_UP, ROUNDS = 5, 50
CPU = torch.device("cpu")


def recorded(recipe: str) -> Plan:
    """Return the plan of a recipe's second step."""
    config = RECIPES[recipe].config
    flow, encoder = config.method.flow, config.method.encoder
    model, arena = MIM(config.method), Arena()
    updates = [GroupOptimizer(*group, config.optim, device=CPU, fp16=False) for group in flow.partition(model).items()]
    images = torch.randint(0, 256, (BATCH, encoder.channels, *2 * [encoder.image_size]), dtype=torch.uint8)
    for step in range(2):
        batch = MicroBatch(images, model.views(images, torch.arange(BATCH), seed=step))
        flow.step(model, [batch], updates, slices=SLICES, scope=arena.scope)
    return arena.plan()


@pytest.fixture(scope="module", params=["mae_vit_test", "bim_vit_test", "mae_vit_base", "bim_vit_base"])
def case(request: Any) -> tuple[str, Plan]:
    return request.param, recorded(request.param)


@pytest.mark.parametrize("provider", ["arena", "malloc"])
def test_allocations(benchmark: Any, case: tuple[str, Plan], provider: str) -> None:
    recipe, plan = case
    rerun = native().Rerun(to_native(plan)[0])
    arena = native().HostArena(False) if provider == "arena" else None
    benchmark.group = f"allocations of a step of {recipe}"
    benchmark.pedantic(rerun.step, (arena,), rounds=ROUNDS, warmup_rounds=WARM_UP)
    benchmark.extra_info["allocations"] = len(plan.blocks)
    benchmark.extra_info["ns an allocation"] = 1e9 * benchmark.stats.stats.median / len(plan.blocks)
    benchmark.extra_info["% above the bound"] = 100 * plan.gap
    if arena is not None:
        statistics = arena.statistics()
        assert statistics["plans"] == 1
        assert statistics["upstream_calls_last_step"] == statistics["diverged_steps"] == 0


def test_planning(benchmark: Any, case: tuple[str, Plan]) -> None:
    recipe, plan = case
    benchmark.group = f"planning a step of {recipe}"
    benchmark.extra_info["blocks"] = len(plan.blocks)
    keywords = {"ticks": plan.ticks, "alignment": plan.alignment}
    assert benchmark.pedantic(make_plan, (plan.scopes, plan.blocks), keywords, rounds=5) == plan
