"""FreezeOut against the published table, and what a frozen prefix costs: nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from published_freezing import RATES

from bimkern.mim.flow import EndToEnd, Local, MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.mim.schedule import Cosine, FreezeOut
from bimkern.recipes import RECIPES
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.group import GroupOptimizer

EPOCHS, WARMUP, DEPTH, PEAK = 100, 10, 12, 1.6e-3
SCHEDULE = FreezeOut(warmup=WARMUP / EPOCHS)
CODE = replace(SCHEDULE, warmup_to="common")

RHO = (0.51200, 0.54467, 0.57870, 0.61413, 0.65096, 0.68925, 0.72900, 0.77025, 0.81304, 0.85737, 0.90330, 0.95083, 1)
FREEZE_EPOCHS = (56.08, 59.02, 62.08, 65.27, 68.59, 72.03, 75.61, 79.32, 83.17, 87.16, 91.30, 95.57, 100)


def test_shares_of_the_run():
    assert [SCHEDULE.share(group, DEPTH) for group in range(DEPTH + 1)] == pytest.approx(RHO, abs=5e-6)
    linear = FreezeOut(warmup=0.1, t0=0.5, power=1)
    assert [linear.share(group, DEPTH) for group in (0, 1, 6, 12)] == pytest.approx([0.5, 0.5417, 0.75, 1], abs=5e-5)


@pytest.mark.parametrize(("epoch", "rates"), RATES.items())
def test_rates_of_the_published_program(epoch, rates):
    found = [1e3 * PEAK * CODE.factor(epoch / EPOCHS, group, DEPTH) for group in (0, 2, 6, 12)]
    assert found == pytest.approx(rates, abs=5e-6)


def test_every_group_warms_up_to_its_own_rate():
    """Without the published program's jump at the end of warm-up."""
    for group in (0, 6, 12):
        before, after = (SCHEDULE.factor(0.1 + step, group, DEPTH) for step in (-1e-9, 1e-9))
        assert before == pytest.approx(after, rel=1e-6)
    jump = [CODE.factor(0.1 + step, 0, DEPTH) for step in (-1e-9, 1e-9)]
    assert jump[1] / jump[0] == pytest.approx(1.9531, abs=5e-5)


def test_groups_freeze_in_turn():
    for group, epoch in enumerate(FREEZE_EPOCHS[:-1]):
        assert SCHEDULE.frozen_groups((epoch - 0.02) / EPOCHS, DEPTH) == group
        assert SCHEDULE.frozen_groups((epoch + 0.02) / EPOCHS, DEPTH) == group + 1
    assert SCHEDULE.frozen_groups(1.0, DEPTH) == DEPTH  # the last layer learns to the end


def test_unscaled_and_global_rates():
    unscaled, common = replace(SCHEDULE, rate="unscaled"), replace(SCHEDULE, rate="global", final=0.1)
    assert unscaled.factor(0.3, 6, DEPTH) == pytest.approx(SCHEDULE.factor(0.3, 6, DEPTH) * SCHEDULE.share(6, DEPTH))
    assert common.factor(0.55, 12, DEPTH) == common.factor(0.55, 3, DEPTH) == pytest.approx(0.55)
    assert common.factor(0.7, 3, DEPTH) == 0  # frozen all the same
    assert common.factor(0.1, 0, DEPTH) == 1


def test_heads_keep_the_common_rate_until_the_layer_that_they_read_is_frozen():
    """As the paper says; LocalMIM's cosine ends at 1e-6."""
    schedule, cosine = replace(SCHEDULE, final=1e-6 / PEAK), Cosine(warmup=0.1, final=1e-6 / PEAK)
    for tap in (2, 4, 10, 12):
        for progress in (0.05, 0.1, 0.3, 0.62, 0.68, 0.91, 1.0):
            frozen = schedule.frozen_groups(progress, DEPTH) > tap
            expected = 0 if frozen else cosine.factor(progress)
            assert schedule.factor(progress, tap, DEPTH, head=True) == pytest.approx(expected)
    assert schedule.factor(0.3, 2, DEPTH) > 1.1 * schedule.factor(0.3, 2, DEPTH, head=True)
    assert PEAK * schedule.factor(1.0, 12, DEPTH, head=True) == pytest.approx(1e-6)
    assert schedule.factor(1.0, 12, DEPTH) == 0


def test_heads_take_the_rate_of_what_they_read_as_in_the_published_program():
    schedule = replace(CODE, heads="group", final=0.1)
    for tap in (2, 4, 10, 12):
        for epoch in (5, 30, 62, 63, 100):
            own = schedule.factor(epoch / EPOCHS, tap, DEPTH)
            assert schedule.factor(epoch / EPOCHS, tap, DEPTH, head=True) == own
    assert 1e3 * PEAK * schedule.factor(0.3, 2, DEPTH, head=True) == pytest.approx(1.8751, abs=5e-6)


@pytest.mark.parametrize("heads", ["global", "group"])
def test_the_optimizer_gives_every_head_its_rate(heads):
    model = MIM(RECIPES["vitfreeze_vit_test"].config.method)  # 8 layers, read behind the 2nd, 4th, 6th and 8th
    schedule = replace(SCHEDULE, heads=heads)
    ((name, parameters),) = EndToEnd().partition(model).items()
    options = {"device": torch.device("cpu"), "fp16": False, "layer_groups": model.layer_groups()}
    update = GroupOptimizer(name, parameters, AdamWConfig(), **options)
    progress = 0.1 + 0.9 * (SCHEDULE.share(2, 8) + SCHEDULE.share(3, 8)) / 2  # groups 0, 1 and 2 are frozen
    update.set_rates(lambda group: schedule.factor(progress, group.number, 8, head=group.head))
    names = {parameter: name for name, parameter in parameters}
    found = {names[p]: group["lr"] for group in update._optimizer.inner.param_groups for p in group["params"]}
    assert len(found) == len(names)
    own = [schedule.factor(progress, group, 8) for group in range(9)]
    for stage, tap in enumerate(model.method.taps):
        head = {rate for name, rate in found.items() if name.startswith(f"heads.{stage}.")}
        assert head == {
            0.0 if stage == 0 else own[tap + 1] if heads == "group" else Cosine(warmup=0.1).factor(progress)
        }
        rates = {rate for name, rate in found.items() if name.startswith(f"encoder.blocks.{tap}.")}
        assert rates == {own[tap + 1]}


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"FreezeOut: warmup must be in \[0, 1\], a share of the run, got 10;"):
        FreezeOut(warmup=10)
    with pytest.raises(ValueError, match=r"FreezeOut: t0 must be in \(0, 1\], got 0"):
        FreezeOut(warmup=0.1, t0=0)
    with pytest.raises(ValueError, match="FreezeOut: power must be at least 1, got 0"):
        FreezeOut(warmup=0.1, power=0)


class KeepGradients:
    def __init__(self):
        self.applied = 0

    def scale(self, loss):
        return loss

    def apply(self):
        self.applied += 1


def step(flow, frozen_groups):
    """One step; returns the model, the losses, the updates and the bytes that autograd saved."""
    torch.manual_seed(0)
    model = MIM(replace(RECIPES["vitfreeze_vit_test"].config.method, flow=flow))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = MicroBatch(images, model.views(images, torch.arange(2), 0))
    updates = [KeepGradients() for _ in flow.partition(model)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        losses = flow.step(model, [batch], updates, StepOptions(frozen_groups=frozen_groups))
    return model, losses, updates, sum(saved)


FLOWS = [EndToEnd(), Local()]


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("frozen_groups", range(9))
def test_exactly_the_groups_that_learn_have_gradients(flow, frozen_groups):
    model, losses, updates, _ = step(flow, frozen_groups)
    groups = model.layer_groups()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {name for name in groups if groups[name].number >= frozen_groups}
    frozen = [tap + 1 < frozen_groups for tap in model.method.taps]
    assert losses.isnan().tolist() == frozen
    expected = [0 if stage else 1 for stage in frozen] if isinstance(flow, Local) else [1]
    assert [update.applied for update in updates] == expected


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_what_still_learns_has_the_gradients_that_it_would_have(flow):
    whole, losses, *_ = step(flow, 0)
    partly, partial_losses, *_ = step(flow, 4)
    torch.testing.assert_close(losses[1:], partial_losses[1:])  # coarse histograms are summed in another order
    for name, parameter in partly.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_a_frozen_prefix_saves_nothing_for_backward(flow):
    """Groups 3, 5 and 7 are layers alone; 2, 4 and 6 are read by a head that goes with them."""
    saved = [step(flow, frozen_groups)[3] for frozen_groups in range(9)]
    freed = [before - after for before, after in pairwise(saved)]
    assert min(freed) > 0
    assert freed[3] == freed[5] == freed[7] < min(freed[2], freed[4], freed[6])


@pytest.mark.parametrize("recompute", ["none", "layers"])
def test_batch_norms_of_frozen_layers_learn_nothing_and_use_what_they_have_learned(recompute):
    method = RECIPES["fastmim_cmt_test"].config.method
    model = MIM(method)
    model.recompute = recompute
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = MicroBatch(images, model.views(images, torch.arange(2), 0))
    frozen = [name for name, _ in model.encoder.named_buffers() if method.encoder.layer_group(name) < 2]
    for groups, changed in ((0, {True}), (2, {False}), (0, {True})):
        before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
        model.eval().train()  # as an evaluation does
        method.flow.step(model, [batch], [KeepGradients()], StepOptions(frozen_groups=groups))
        now = dict(model.encoder.named_buffers())
        assert {not torch.equal(before[name], now[name]) for name in frozen} == changed
        assert all(not torch.equal(before[name], now[name]) for name in now.keys() - set(frozen))
    assert len(frozen) > 3
    model.encode(0, batch.images, batch.views[0], 2)
    assert not model.encoder.embedding[2].training
    model.eval().encode(0, batch.images, batch.views[0])
    assert not any(module.training for module in model.modules())
