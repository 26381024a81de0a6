"""What a step needs, told beforehand, against what the arena of a run then plans and measures."""

from dataclasses import replace

import pytest
import torch
from growing import write_teacher

from bimkern.arena import Arena
from bimkern.data.step_layout import Segment
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES, SMALL_RECIPES
from bimkern.train import network
from bimkern.train.memory.estimate import exact_need, step_plan
from bimkern.train.memory.extrapolate import Scaling
from bimkern.train.optim.group import GroupOptimizer


def kind(recipe, batch, micro):
    size = RECIPES[recipe].config.method.encoder.image_size
    return Segment(image_size=size, batch_size=batch, micro_batch=micro)


def config(recipe, **options):
    given = RECIPES[recipe].config
    return replace(given, run=replace(given.run, **options))


def real_steps(given, batch, micro):
    """Train some steps under an arena: one passes, one is recorded, others are replayed."""
    torch.manual_seed(0)
    model, arena, flow = network.build(given), Arena(), given.method.flow
    cpu = torch.device("cpu")
    updates = [GroupOptimizer(*group, given.optim, device=cpu, fp16=False) for group in flow.partition(model).items()]
    size = given.method.encoder.image_size
    for step in range(5):
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8).split(micro)
        ids = (torch.arange(batch) + batch * step).split(micro)
        batches = [MicroBatch(part, model.views(part, draws, 0)) for part, draws in zip(images, ids, strict=True)]
        flow.step(model, batches, updates, slices=given.run.slices, scope=arena.scope if step else Arena().scope)
    return arena


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "backbone")


@pytest.mark.parametrize("recipe", [recipe.name for recipe in SMALL_RECIPES])
def test_real_steps_need_what_was_told_before_them(recipe, teacher):
    given = config(recipe, slices=2, precision="fp32")
    if given.method.distillation is not None:
        given = config(recipe, slices=2, precision="fp32", teacher=teacher)
    steps = kind(recipe, 64, 32)
    told, arena = Scaling().need(given, steps), real_steps(given, 64, 32)
    plan, stats = arena.plan(), arena.stats()
    assert (stats.plans, stats.diverged_steps) == (1, 0)
    assert stats.planned_reach == plan.peak
    always = exact_need(given, steps).bound - step_plan(given, steps).bound  # weights and the like: not in the plan
    assert abs(told.bound - always - plan.bound) <= 256
    assert told.peak == pytest.approx(always + plan.peak, rel=0.02)


@pytest.mark.parametrize("recipe", ["bim_vit_test", "mae_vit_test", "localmim_vit_test"])
@pytest.mark.parametrize(("batch", "micro", "slices"), [(32, 32, 1), (32, 32, 2), (45, 16, 5), (9, 2, 1)])
def test_what_small_steps_tell_is_what_an_exact_count_finds(recipe, batch, micro, slices):
    given, steps = config(recipe, slices=slices), kind(recipe, batch, micro)
    told, counted = Scaling().need(given, steps), exact_need(given, steps)
    for part in ("weights", "gradients", "optimizer", "inputs"):
        assert getattr(told, part) == getattr(counted, part), part
    assert told.scopes.keys() == counted.scopes.keys()
    for part in ("activations", "bound"):  # some scalars are as many as the micro-batches
        assert abs(getattr(told, part) - getattr(counted, part)) <= 256, part
    assert told.peak == pytest.approx(counted.peak, rel=0.01)


def test_parts_of_a_step():
    given = config("bim_vit_test")
    need, model = Scaling().need(given, kind("bim_vit_test", 8, 8)), MIM(given.method)
    sizes = [sum(p.nbytes for _, p in model.stage_parameters(k)) for k in range(model.num_stages)]
    buffers = sum(b.nbytes for b in model.buffers())
    assert need.weights == sum(sizes) + buffers
    assert need.gradients == max(sizes)
    assert need.optimizer == 2 * sum(sizes) + 4 * len(list(model.parameters()))
    assert need.inputs == 8 * (3 * 32 * 32 + 8)
    assert need.activations == max(need.scopes.values())
    assert list(need.scopes) == ["stage0", "stage1", "stage2", "stage3"]
    assert need.bound <= need.peak <= 1.03 * need.bound
    assert need.peak < need.weights + need.gradients + need.optimizer + need.inputs + need.activations


def test_the_least_is_the_bound_of_a_need():
    scaling = Scaling()
    for slices, micro in ((1, 32), (1, 5), (4, 16), (4, 4)):
        given, steps = config("bim_vit_test", slices=slices), kind("bim_vit_test", 32, micro)
        need = scaling.need(given, steps)
        assert scaling.least(given, steps) == need.bound
        assert scaling.always(given, steps) == need.weights + need.optimizer < need.bound


def test_a_gpu_aligns_to_more():
    given, steps = config("mae_vit_test"), kind("mae_vit_test", 8, 8)
    assert step_plan(given, steps, "cuda").alignment == 512
    assert Scaling("cuda").need(given, steps).peak > Scaling().need(given, steps).peak
