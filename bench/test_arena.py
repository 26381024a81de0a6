"""The allocations of a training step, replayed by the arena and given out by malloc: `pytest bench/test_arena.py`.

Both go through torch's allocator interface, an allocation and its free together. Recorded on a small batch: the number
of allocations is that of any batch. `extra_info` has nanoseconds for each, and how far the plan is above the bound. On
a GPU (bench/device_replay.py) every provider has a process, and what counts is in `extra_info` alone.
"""

from typing import Any

import pytest
import torch

from bench.device_replay import PROVIDERS, measure, recorded
from bimkern.arena import Plan, make_plan
from bimkern.arena._native import native
from bimkern.arena.plan import to_native

WARM_UP, ROUNDS = 5, 50


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_allocations_on_cuda(benchmark: Any, case: tuple[str, Plan], provider: str) -> None:
    recipe, plan = case
    benchmark.group = f"processes that replay a step of {recipe} on a GPU"
    benchmark.extra_info |= benchmark.pedantic(measure, (provider, plan), rounds=1)
