"""The usual training loop computes what ours computes, and the operations of a step are counted right."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.eager.loop import usual_loop
from bench.entries.step import Ours, measure
from bench.entry import Case
from bench.flops import step_flops
from bench.refcheck import WrongResult
from bimkern.mim.masking import RandomDrop
from bimkern.recipes import RECIPES

CPU = torch.device("cpu")
RECIPE_NAMES = ["mae_vit_test", "bim_vit_test", "bim_vit_test_growing", "demo"]


def pair(recipe, dtype="float32", **changes):
    """Ours and the usual loop with the same weights on the same images."""
    config = RECIPES[recipe].config
    config = replace(config, method=replace(config.method, **changes))
    case = Case(device=CPU, dims={"recipe": recipe, "B": 4}, dtype=dtype, pass_name="step")
    side = config.method.encoder.image_size
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    ours = Ours(config, case, images)
    usual = usual_loop(config.method, config.optim, case.torch_dtype, CPU)
    usual.network.load_state_dict(ours.model.state_dict())
    return ours, usual, images


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_losses_on_the_same_mask(recipe, dtype):
    ours, usual, images = pair(recipe, dtype)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    losses = ours.step(slices=2)
    torch.testing.assert_close(usual.step(images, ours.noise()), losses, rtol=tolerance, atol=0)


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_same_weights_after_learning(recipe):
    ours, usual, images = pair(recipe)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    for update in ours._updates:
        update.set_rates(lambda unit: 1e-3)
    for optimizer in usual.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
    ours.step(slices=1)
    usual.step(images, ours.noise())
    agree = []
    for (name, a), b in zip(ours.model.named_parameters(), usual.network.parameters(), strict=True):
        assert not torch.equal(a, before[name]), f"{name} learnt nothing"
        agree.append(((a - b).abs() < 1e-5).flatten())
    # AdamW's first step is the sign of a gradient; where that is zero, as for a key's bias, rounding decides it.
    assert torch.cat(agree).float().mean() > 0.99


def test_nothing_moves_at_learning_rate_zero():
    ours, usual, images = pair("bim_vit_test")
    first = ours.step(slices=1), usual.step(images, ours.noise())
    again = ours.step(slices=1), usual.step(images, ours.noise())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test"])
def test_operations_are_those_that_torch_counts(recipe):
    # Nothing hidden: our embedding is then that of the visible patches.
    ours, _, _ = pair(recipe, masker=RandomDrop(ratios=(0.0,)))
    # The counter does not look into an op, so it is told of the one product that is in ours.
    known = {
        torch.ops.bimkern.embed_visible: lambda images, weight, bias, keep, *_, **__: 2 * prod(keep) * prod(weight)
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
        ours.step(slices=1)
    assert counter.get_total_flops() == 4 * step_flops(ours.model.method)


def test_another_loss_is_refused():
    case = Case(device=CPU, dims={"recipe": "mae_vit_test", "B": 4}, dtype="float32", pass_name="step")
    made = measure(case)
    losses = made.ours()
    made.check("ours", losses, losses)
    made.check("eager", 1.04 * losses, losses)
    with pytest.raises(WrongResult, match=r"ours: losses \[.*\], expected \[.*\] within 1e-04"):
        made.check("ours", 1.01 * losses, losses)
    with pytest.raises(WrongResult, match="eager: losses"):
        made.check("eager", 1.1 * losses, losses)


def test_a_method_without_a_usual_form_is_refused():
    config = RECIPES["bim_vit_test_growing"].config
    method = replace(config.method, masker=replace(config.method.masker, loss_mask="first"))
    with pytest.raises(ValueError, match="no usual form is written for RandomDrop, PixelTarget, Local"):
        usual_loop(method, config.optim, torch.float32, CPU)
