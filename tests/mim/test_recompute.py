"""Layers that run once more in the backward pass: the same bits for less memory."""

from dataclasses import replace

import pytest
import torch

from bimkern.data.step_layout import Segment
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.mim.recompute import check, parts
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.memory.budget import MemoryEstimator, find_fitting, find_recompute

IMAGES = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Gradients:
    """An update that keeps what it would apply."""

    def __init__(self, parameters):
        self.parameters, self.found = dict(parameters), {}

    def scale(self, loss):
        return loss

    def apply(self):
        for name, parameter in self.parameters.items():
            self.found[name], parameter.grad = parameter.grad, None


def build(recipe, choice):
    torch.manual_seed(1)
    model = MIM(RECIPES[recipe].config.method)
    model.recompute = choice
    return model


def step(model, frozen_groups=0):
    """Run one step; return losses, gradients, and how often layers of the encoder ran."""
    method = model.method
    images = IMAGES[:, :, : method.encoder.image_size.height, : method.encoder.image_size.height]
    updates = [Gradients(group) for group in method.flow.partition(model).values()]
    ran, run_layer = [], model.encoder.run_layer

    def counted(layer, *given):
        ran.append(layer)
        return run_layer(layer, *given)

    model.encoder.run_layer = counted
    batches = [MicroBatch(images[:2], model.views(images[:2], torch.arange(2), 0))]
    batches.append(MicroBatch(images[2:], model.views(images[2:], torch.arange(2) + 2, 0)))
    losses = method.flow.step(model, batches, updates, StepOptions(frozen_groups=frozen_groups))
    return losses, {name: grad for update in updates for name, grad in update.found.items()}, len(ran)


@pytest.mark.parametrize("choice", ["layers", "stages", "1", "3"])
@pytest.mark.parametrize(
    ("recipe", "frozen_groups"),
    [
        ("mae_vit_test", 0),
        ("bim_vit_test_growing", 0),
        ("localmim_vit_test", 0),
        ("vitfreeze_vit_test", 4),
        ("greenmim_swin_tiny_test", 0),
        ("fastmim_cmt_test", 0),
    ],
)
def test_losses_and_gradients_are_the_same_bits(recipe, frozen_groups, choice):
    losses, gradients, ran = step(build(recipe, "none"), frozen_groups)
    again, others, more = step(build(recipe, choice), frozen_groups)
    assert torch.equal(losses.nan_to_num(), again.nan_to_num())
    for name, grad in gradients.items():
        assert grad is others[name] is None or torch.equal(grad, others[name]), name
    assert ran < more <= 2 * ran


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("choice", ["layers", "stages"])
def test_batch_norms_count_every_image_once(choice, momentum):
    models = [build("fastmim_cmt_test", each) for each in ("none", choice)]
    for model in models:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = momentum
        step(model)
        step(model)
    plain, again = (dict(model.named_buffers()) for model in models)
    assert any(name.endswith("running_var") for name in plain)
    for name, buffer in plain.items():
        assert torch.equal(buffer, again[name]), name
    assert {getattr(module, "momentum", momentum) for module in models[1].modules()} == {momentum}


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ("none", [([0, 1, 2], False)]),
        ("stages", [([0, 1, 2], True)]),
        ("layers", [([0], True), ([1], True), ([2], True)]),
        ("2", [([0], True), ([1], True), ([2], False)]),
        ("7", [([0], True), ([1], True), ([2], True)]),
    ],
)
def test_parts_of_a_stage(choice, found):
    assert [(list(layers), again) for layers, again in parts(range(3), choice)] == found


@pytest.mark.parametrize("text", ["", "0", "-1", "all", "1.5"])
def test_what_is_no_choice_is_refused(text):
    with pytest.raises(ValueError, match="must be none, layers, stages, or a number of layers of at least 1, got"):
        check(text)
    config = RECIPES["bim_vit_test"].config
    with pytest.raises(ConfigError, match=r"^--recompute must be none, layers, stages, or a number"):
        replace(config.run, recompute=text)


def config_of(choice):
    base = RECIPES["bim_vit_base"].config
    (head,) = base.method.heads
    method = replace(base.method, heads=(replace(head, depth=3),))  # which is faster to trace
    return replace(
        base, method=method, run=replace(base.run, batch_size=16, micro_batch=16, precision="fp32", recompute=choice)
    )


def test_less_memory_is_planned_and_the_least_work_that_fits_is_found():
    estimator, segment = MemoryEstimator(), Segment(image_size=224, batch_size=16, micro_batch=16)
    activations = {}
    for choice in ("none", "2", "layers"):
        activations[choice] = estimator.estimate(config_of(choice), segment).activations
    assert activations["layers"] < activations["2"] < activations["none"]
    limit = estimator.peak(config_of("2"))
    assert limit < estimator.peak(config_of("1"))
    assert find_recompute(config_of("none"), estimator, limit) == "2"
    assert find_recompute(config_of("none"), estimator, 2**62) == "none"
    assert find_recompute(config_of("none"), estimator, 2**20) is None
    limit = estimator.peak(config_of("layers"))
    assert "--recompute layers" in str(find_fitting(config_of("none"), estimator, limit))
