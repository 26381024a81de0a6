"""The operations that are counted for a step are those that torch counts while it runs."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.entry import Case
from bench.flops import freeze_shares, run_flops, step_flops
from bench.training import Ours, random_images
from bimkern.nn import match_head
from bimkern.ops import masked_loss
from bimkern.ops.match import match_predict
from bimkern.recipes import RECIPES

B = 3
SMALL = [name for name, recipe in RECIPES.items() if "_vit_test" in name and recipe.config.method.distillation is None]
SMALL += ["demo"]
SWINS = [name for name in RECIPES if "_swin_tiny_test" in name]
FREEZING = ["vitfreeze_vit_test", "vitfreeze_vit_test_isolated"]


def linear_flops(tokens, weight, bias, rows, columns, squares, **_):
    return 2 * tokens[0] * (rows * columns // (4 if squares else 1)) * prod(weight)


def linear_bwd_flops(grad, x, weight, rows, columns, squares, dtype, tokens_needed, weight_needed, *_, **__):
    return 2 * prod(grad) * weight[1] * (tokens_needed + weight_needed)


# The counter does not look into an op, so it is told of the products that are in ours.
KNOWN = {
    torch.ops.bimkern.embed_visible: lambda images, weight, bias, keep, *_, **__: 2 * prod(keep) * prod(weight),
    torch.ops.bimkern.match_linear: linear_flops,
    torch.ops.bimkern.match_linear_bwd: linear_bwd_flops,
}


def masked_alone(features, layers, target, mask, scale, *, kind, grid, denominator, dtype):
    """match_loss that decodes no visible patch, where cells belong to one patch alone."""
    whole = {"grid": grid, "dtype": dtype}
    if scale < 1:
        pred = match_predict(features, layers, scale, **whole)
        squares = mask.unflatten(1, (grid[0] // 2, 2, grid[1] // 2, 2))
        return masked_loss(pred, target, squares.mean(dim=(2, 4)).flatten(1), kind, denominator=denominator)
    side, num_masked = int(scale), int(mask[0].sum())
    masked = mask.argsort(dim=1, descending=True)[:, :num_masked]
    rows = torch.arange(len(mask))[:, None]
    # A grid of one column: the cells of a patch are then neighbors.
    pred = match_predict(features[rows, masked], layers, scale, grid=(num_masked, 1), dtype=dtype)
    cells = target.unflatten(1, (grid[0], side, grid[1], side)).transpose(2, 3).flatten(1, 2)  # [B, N, side, side, P]
    wanted = cells[rows, masked].flatten(1, 3)
    return masked_loss(pred, wanted, torch.ones_like(wanted[..., 0]), kind, denominator=denominator)


def build(recipe, **changes):
    config = RECIPES[recipe].config
    config = replace(config, method=replace(config.method, **changes))
    case = Case(device=torch.device("cpu"), dims={"B": B}, dtype="float32", pass_name="step")
    return Ours(config, case, random_images(config, case))


def counted(ours, frozen_groups=0):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=KNOWN) as counter:
        ours.step(slices=1, frozen_groups=frozen_groups)
    return counter.get_total_flops()


@pytest.fixture
def decoded_alone(monkeypatch):
    monkeypatch.setattr(match_head, "match_loss", masked_alone)


@pytest.mark.parametrize("recipe", SMALL)
def test_every_recipe(recipe, decoded_alone):
    ours = build(recipe)
    assert counted(ours) == B * step_flops(ours.model.method)


def windows_flops(method):
    """Count attention in windows, an op into which the counter does not look, on tokens that are spread evenly."""
    encoder = method.encoder
    grid = encoder.level(0).grid(encoder.image_size.height, encoder.image_size.height)
    (num_patches,) = {*method.masker.entering(grid, len(method.taps))}
    total = 0
    for stage, depth in enumerate(encoder.depths):
        tokens, side = num_patches // 4**stage, grid[0] // 2**stage
        shared = tokens * min(encoder.windows(grid)[stage], side) ** 2 // side**2
        total += depth * 4 * tokens * shared * encoder.width * 2**stage
    return total


@pytest.mark.parametrize("recipe", SWINS)
def test_every_recipe_of_a_swin(recipe):
    ours = build(recipe)
    method = ours.model.method
    assert counted(ours) == B * (step_flops(method) - 3 * windows_flops(method))


@pytest.mark.parametrize("recipe", FREEZING)
@pytest.mark.parametrize("frozen_groups", range(9))
def test_every_number_of_frozen_groups(recipe, frozen_groups, decoded_alone):
    ours = build(recipe)
    assert counted(ours, frozen_groups) == B * step_flops(ours.model.method, frozen_groups)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("bim_vit_test_growing", {"decoder_sees": "after_drop"}),
        ("localmim_vit_test_isolated_growing", {"loss_mask": "first"}),
        ("maskfeat_vit_test", {"exact": False}),
    ],
)
def test_options_of_maskers(recipe, options, decoded_alone):
    masker = replace(RECIPES[recipe].config.method.masker, **options)
    ours = build(recipe, masker=masker)
    assert counted(ours) == B * step_flops(ours.model.method) != B * step_flops(RECIPES[recipe].config.method)


@pytest.mark.parametrize("recipe", ["localmim_vit_test", "localmim_vit_test_pixels"])
def test_visible_patches_need_no_decoding(recipe, monkeypatch):
    ours = build(recipe)
    before = ours.step(slices=1)
    monkeypatch.setattr(match_head, "match_loss", masked_alone)
    torch.testing.assert_close(ours.step(slices=1), before)


def test_a_schedule_without_freezing_saves_nothing():
    config = RECIPES["localmim_vit_base"].config
    assert freeze_shares(config) == {0: 1.0}
    assert run_flops(config) == step_flops(config.method)


def test_freezing_saves_more_than_15_percent_of_localmim():
    config = RECIPES["vitfreeze_vit_base"].config
    shares = freeze_shares(config)
    assert list(shares) == list(range(13))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[0] == pytest.approx(0.1 + 0.9 * 0.8**3, abs=1e-4)
    saved = 1 - run_flops(config) / step_flops(RECIPES["localmim_vit_base"].config.method)
    assert 0.15 < saved < 0.16
