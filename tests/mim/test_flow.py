"""The promises of the gradient flows: what they change is memory, never mathematics."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from bimkern.mim.flow import EndToEnd, Local, MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.mim.targets import StageTarget
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import RECIPES
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker
from bimkern.train.optim.group import GroupOptimizer

SEED = 11
METHODS = tuple(
    name for name, recipe in RECIPES.items() if "_vit_test" in name and recipe.config.method.distillation is None
)


class KeepGradients:
    """An update that does nothing, so that a test can read the gradients."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass


def build(recipe, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    model = MIM(replace(RECIPES[recipe].config.method, **changes)).to(dtype)
    set_compute_dtype(model, dtype)
    return model


def micro_batches(model, *sizes):
    generator = torch.Generator().manual_seed(5)
    side = model.method.encoder.image_size.height
    images = torch.randint(0, 256, (sum(sizes), 3, side, side), dtype=torch.uint8, generator=generator)
    ids = torch.arange(sum(sizes))
    parts = zip(images.split(sizes), ids.split(sizes), strict=True)
    return [MicroBatch(part, model.views(part, part_ids, SEED)) for part, part_ids in parts]


def gradients(model, batches, slices=1):
    flow = model.method.flow
    updates = [KeepGradients() for _ in flow.partition(model)]
    losses = flow.step(model, batches, updates, StepOptions(slices=slices))
    found = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in found.values())
    model.zero_grad()
    return losses, found


def assert_equal_to_rounding(ours, plain):
    (losses, grads), (plain_losses, plain_grads) = ours, plain
    torch.testing.assert_close(losses, plain_losses, rtol=1e-12, atol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, plain_grads[name], rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


def plain_losses(model, batch, *, local):
    """The definition: forward everything, one loss a stage, the input of a stage detached if the flow is local."""
    tokens, losses = batch.images, []
    for stage, view in enumerate(batch.views):
        tokens = model.encode(stage, tokens.detach() if local else tokens, view)
        target = model.targets([stage] if local else range(model.num_stages), batch.images)[stage]
        losses.append(model.loss(stage, tokens, batch.images, view, target, view.masked.sum()))
    return losses


@pytest.mark.parametrize("recipe", METHODS)
@pytest.mark.parametrize("slices", [1, 2, 3, 6])
def test_sliced_decoding_equals_plain_autograd(recipe, slices):
    model = build(recipe)
    (batch,) = micro_batches(model, 6)
    losses = torch.stack(plain_losses(model, batch, local=isinstance(model.method.flow, Local)))
    losses.sum().backward()
    plain = losses.detach(), {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    assert_equal_to_rounding(gradients(model, [batch], slices), plain)


@pytest.mark.parametrize("recipe", METHODS)
@pytest.mark.parametrize("sizes", [(3, 3), (2, 2, 1, 1), (4, 2)])
def test_accumulation_equals_the_whole_batch(recipe, sizes):
    model = build(recipe)
    whole = gradients(model, micro_batches(model, 6))
    assert_equal_to_rounding(gradients(model, micro_batches(model, *sizes), slices=2), whole)


def test_stage_major_equals_batch_major():
    """Batch-major: every micro-batch passes all stages before the next one starts."""
    model = build("bim_vit_test_growing")
    batches = micro_batches(model, 4, 2)
    denominators = [sum(batch.views[s].masked.sum() for batch in batches) for s in range(model.num_stages)]
    total = torch.zeros(model.num_stages, dtype=torch.float64)
    for batch in batches:
        tokens = batch.images
        for stage, view in enumerate(batch.views):
            tokens = model.encode(stage, tokens.detach(), view)
            loss = model.loss(stage, tokens, batch.images, view, StageTarget(), denominators[stage])
            loss.backward()
            total[stage] += loss.detach()
    plain = total, {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    assert_equal_to_rounding(gradients(model, batches), plain)


@pytest.mark.parametrize("recipe", ["bim_vit_test", "bim_vit_test_growing"])
def test_no_gradient_crosses_a_boundary(recipe):
    model = build(recipe)
    (batch,) = micro_batches(model, 4)
    losses = plain_losses(model, batch, local=True)
    for stage in range(model.num_stages):
        others = {name: p for k in range(model.num_stages) if k != stage for name, p in model.stage_parameters(k)}
        reached = torch.autograd.grad(losses[stage], list(others.values()), retain_graph=True, allow_unused=True)
        assert all(grad is None for grad in reached)


def test_a_step_gives_a_stage_the_gradient_of_its_own_loss_alone():
    """Through the flow itself: the gradient of stage k does not change when another stage's head does."""
    model = build("bim_vit_test")
    (batch,) = micro_batches(model, 4)
    _, before = gradients(model, [batch])
    with torch.no_grad():
        model.heads[2].pred.weight.mul_(3)
    _, after = gradients(model, [batch])
    own = {name for name, _ in model.stage_parameters(2)}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in own)
    assert any(not torch.equal(before[name], after[name]) for name in own)


def test_every_parameter_belongs_to_one_stage():
    model = build("bim_vit_test")
    names = [name for stage in range(model.num_stages) for name, _ in model.stage_parameters(stage)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


class AtTheEnd:
    """Hold back the update of a stage until the whole step is over."""

    def __init__(self, inner):
        self.inner = inner

    def scale(self, loss):
        return self.inner.scale(loss)

    def apply(self):
        pass


def test_immediate_updates_equal_one_update_at_the_end_bit_for_bit():
    def train(delayed):
        model = build("bim_vit_test_growing", torch.float32)
        flow = model.method.flow
        updates = [
            GroupOptimizer(name, group, AdamWConfig(), device=torch.device("cpu"), fp16=False)
            for name, group in flow.partition(model).items()
        ]
        for update in updates:
            update.set_rates(lambda group: 1e-3)
        for _ in range(3):
            flow.step(
                model,
                micro_batches(model, 4),
                [AtTheEnd(u) for u in updates] if delayed else updates,
                StepOptions(slices=2),
            )
            if delayed:
                for update in updates:
                    update.apply()
        return model.state_dict()

    immediate, delayed = train(False), train(True)
    assert all(torch.equal(immediate[name], delayed[name]) for name in immediate)


def test_update_frees_the_gradients_of_a_stage_before_the_next_begins():
    model = build("bim_vit_test", torch.float32)
    seen = []

    class Watch(KeepGradients):
        def __init__(self, group):
            self.group = group

        def apply(self):
            seen.append({name for name, p in model.named_parameters() if p.grad is not None})
            for _, p in self.group:
                p.grad = None

    groups = list(model.method.flow.partition(model).values())
    model.method.flow.step(model, micro_batches(model, 2, 2), [Watch(group) for group in groups])
    assert seen == [{name for name, _ in group} for group in groups]


@pytest.mark.parametrize(
    ("recipe", "scopes"), [("bim_vit_test", [f"stage{k}" for k in range(4)]), ("mae_vit_test", ["step"])]
)
def test_a_scope_encloses_all_work_and_the_update_of_a_stage(recipe, scopes):
    model = build(recipe, torch.float32)
    events = []

    @contextmanager
    def scope(name):
        events.append(name)
        yield
        events.append("end")

    class Watch(KeepGradients):
        def apply(self):
            events.append("update")

    updates = [Watch() for _ in model.method.flow.partition(model)]
    model.method.flow.step(model, micro_batches(model, 2, 1), updates, StepOptions(scope=scope))
    assert events == [event for name in scopes for event in (name, "update", "end")]


def live_peak(recipe, slices, **changes):
    model = build(recipe, torch.float32, **changes)
    groups = model.method.flow.partition(model).items()
    updates = [GroupOptimizer(*group, AdamWConfig(), device=torch.device("cpu"), fp16=False) for group in groups]
    batches = micro_batches(model, 16)
    model.method.flow.step(model, batches, updates)  # optimizer state is born here
    with AllocationTracker(model.parameters(), counter := LiveBytes()):
        model.method.flow.step(model, batches, updates, StepOptions(slices=slices))
    return counter.peak


def test_local_learning_needs_less_live_memory_and_slices_far_less():
    """Deep enough that the encoder counts, with a decoder as large as the published one is to its encoder."""
    encoder = replace(RECIPES["mae_vit_test"].config.method.encoder, depth=8)
    head = replace(RECIPES["mae_vit_test"].config.method.head(0), depth=2)
    mae = live_peak("mae_vit_test", 1, encoder=encoder, heads=(head,), taps=(7,))
    bim = live_peak("bim_vit_test", 1, encoder=encoder, heads=(head,), taps=(1, 3, 5, 7))
    sliced = live_peak("bim_vit_test", 8, encoder=encoder, heads=(head,), taps=(1, 3, 5, 7))
    assert bim < 0.8 * mae
    assert sliced < 0.4 * mae


def test_end_to_end_serves_several_taps():
    model = build("bim_vit_test", flow=EndToEnd())
    (batch,) = micro_batches(model, 4)
    losses = torch.stack(plain_losses(model, batch, local=False))
    losses.sum().backward()
    plain = losses.detach(), {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    assert_equal_to_rounding(gradients(model, [batch], slices=3), plain)
