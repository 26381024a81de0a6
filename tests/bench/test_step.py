"""The usual training loop computes what ours computes; where none is written, that is known."""

from dataclasses import replace

import pytest
import torch
from interop import import_or_skip

from bench.eager import hf_loop
from bench.eager.form import find_form
from bench.eager.localmim_loop import has_program
from bench.eager.loop import usual_loop
from bench.entries.step import BASE_RECIPES, measure
from bench.entry import Case
from bench.refcheck import WrongResult
from bench.step_runs import StepRuns
from bench.training import Ours, config_of, random_images
from bench.variants import KNOWN
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import RandomUnits, SharedUnits
from bimkern.mim.model import MIM
from bimkern.mim.targets import HogTarget, PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.recipes import RECIPES
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker

CPU = torch.device("cpu")
RECIPE_NAMES = ["mae_vit_test", "bim_vit_test", "bim_vit_test_growing", "demo", "greenmim_swin_tiny_test"]


def pair(recipe, dtype="float32", **changes):
    """Ours and the usual loop with the same weights on the same images."""
    config = RECIPES[recipe].config
    config = replace(config, method=replace(config.method, **changes))
    case = Case(device=CPU, dims={"recipe": recipe, "B": 4}, dtype=dtype, pass_name="step")
    side = config.method.encoder.image_size.height
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    ours = Ours(config, case, images)
    usual = usual_loop(find_form(config.method), config.optim, case.torch_dtype, CPU)
    usual.network.load_state_dict(ours.model.state_dict())
    return ours, usual, images


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_losses_on_the_same_mask(recipe, dtype):
    ours, usual, images = pair(recipe, dtype)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    losses = ours.step(slices=2)
    torch.testing.assert_close(usual.step(images, ours.noise()), losses, rtol=tolerance, atol=0)


def test_draw_ids_are_on_the_host(monkeypatch):
    """Wherever the network is, or a sparse Swin, which is planned on the host, would wait for them."""
    seen = []
    monkeypatch.setattr(MIM, "views", lambda self, images, draw_ids, seed: seen.append((images, draw_ids)))
    case = Case(
        device=torch.device("meta"),
        dims={"recipe": "greenmim_swin_tiny_test", "B": 4},
        dtype="float32",
        pass_name="step",
    )
    config = config_of(case)
    Ours(config, case, random_images(config, case))._views()
    ((images, ids),) = seen
    assert (images.device.type, ids.device.type, ids.tolist()) == ("meta", "cpu", [0, 1, 2, 3])


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_same_weights_after_learning(recipe):
    ours, usual, images = pair(recipe)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    for update in ours._updates:
        update.set_rates(lambda group: 1e-3)
    for optimizer in usual.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
    ours.step(slices=1)
    usual.step(images, ours.noise())
    agree = []
    for (name, a), b in zip(ours.model.named_parameters(), usual.network.parameters(), strict=True):
        assert not torch.equal(a, before[name]), f"{name} learned nothing"
        agree.append(((a - b).abs() < 1e-5).flatten())
    # AdamW's first step is the sign of a gradient; where that is zero, as for a key's bias, rounding decides it.
    assert torch.cat(agree).float().mean() > 0.99


def test_nothing_moves_at_learning_rate_zero():
    ours, usual, images = pair("bim_vit_test")
    first = ours.step(slices=1), usual.step(images, ours.noise())
    again = ours.step(slices=1), usual.step(images, ours.noise())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


MAE = Case(device=CPU, dims={"recipe": "mae_vit_test", "B": 4}, dtype="float32", pass_name="step")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vit_mae_is_a_rival_that_is_held_to_the_loss_on_our_mask(dtype, monkeypatch):
    import_or_skip("transformers")
    made = measure(replace(MAE, dtype=dtype))
    assert list(made.rivals) == ["eager", "hf"]
    assert set(made.parameters) == set(made.providers)
    expected = made.reference()
    got = made.rivals["hf"]()
    assert (got.shape, got.requires_grad) == ((1,), False)
    made.check("hf", got, expected)
    with pytest.raises(WrongResult, match="hf: losses"):
        made.check("hf", 1.5 * got, expected)
    monkeypatch.setattr(StepRuns, "on_our_mask", lambda self, other: 1.02 * expected)
    with pytest.raises(WrongResult, match="hf on our mask: losses"):
        made.check("hf", got, expected)


@pytest.mark.parametrize("recipe", ["bim_vit_test", "greenmim_swin_tiny_test", "localmim_vit_test"])
def test_vit_mae_is_no_rival_of_other_networks(recipe):
    form = find_form(RECIPES[recipe].config.method)
    assert form is None or not hf_loop.has_network(form)


def test_a_rival_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(hf_loop, "unusable", lambda: "not installed")
    assert list(measure(MAE).rivals) == ["eager"]


def test_others_are_left_out_where_they_are_not_wanted():
    assert not measure(MAE, others=False).rivals


def test_a_step_that_recomputes_has_the_same_losses_in_less_memory():
    case = replace(MAE, dims={"recipe": "bim_vit_test", "B": 2})
    made = measure(case, again="layers")
    again = "ours, recomputed: layers"
    assert next(iter(made.rivals)) == again
    assert torch.equal(made.rivals[again](), made.ours())
    live = {}
    for name in ("ours", again):
        with AllocationTracker(made.parameters[name], counter := LiveBytes()):
            made.providers[name]()
        live[name] = counter.peak
    assert live[again] < live["ours"]


def test_steps_are_timed_by_both_clocks_in_seven_rounds():
    made = measure(replace(MAE, dims={"recipe": "bim_vit_test", "B": 1}))
    assert (made.min_rounds, made.process_too) == (7, True)


def test_another_loss_is_refused():
    made = measure(MAE)
    losses = made.ours()
    made.check("ours", losses, losses)
    with pytest.raises(WrongResult, match=r"ours: losses \[.*\], expected \[.*\] within 1e-04"):
        made.check("ours", 1.01 * losses, losses)


@pytest.mark.parametrize(("batch_size", "allowed"), [(1, 0.25), (4, 0.125), (16, 0.0625)])
def test_of_more_images_another_mask_explains_less(batch_size, allowed):
    made = measure(replace(MAE, dims={"recipe": "mae_vit_test", "B": batch_size}))
    losses = torch.tensor([1.0])
    allowed += 1e-4  # of rounding
    made.check("eager", 0.99 * (1 + allowed) * losses, losses)
    with pytest.raises(WrongResult, match="eager: losses"):
        made.check("eager", 1.01 * (1 + allowed) * losses, losses)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_localmim_is_held_to_the_losses_of_its_program_on_our_mask(dtype, monkeypatch):
    made = measure(replace(MAE, dims={"recipe": "localmim_vit_test", "B": 4}, dtype=dtype))
    assert list(made.rivals) == ["eager"]
    expected, got = made.reference(), made.rivals["eager"]()
    assert (expected.shape, got.shape) == ((4,), (1,))
    made.check("eager", got, expected)
    with pytest.raises(WrongResult, match="eager: losses"):
        made.check("eager", 1.5 * got, expected)
    monkeypatch.setattr(StepRuns, "on_our_mask", lambda self, other: 1.02 * expected.sum()[None])
    with pytest.raises(WrongResult, match="eager on our mask: losses"):
        made.check("eager", got, expected)


@pytest.mark.parametrize("name", ["localmim_vit_base", "localmim_vit_base_1600", "localmim_vit_small"])
def test_the_program_of_localmim_is_that_of_its_recipes(name):
    assert has_program(RECIPES[name].config.method)


@pytest.mark.parametrize(
    "name", ["localmim_vit_base_pixels", "localmim_vit_base_isolated", "localmim_vit_large_biased", "mae_vit_base"]
)
def test_the_program_of_localmim_is_of_no_other_method(name):
    assert not has_program(RECIPES[name].config.method)


@pytest.mark.parametrize("name", ["simmim_vit_test", "bim_hog_vit_test", "fastmim_vit_test", "bim_fastmim_vit_test"])
def test_without_a_usual_form_a_step_is_held_to_the_definition_of_its_losses(name):
    made = measure(Case(device=CPU, dims={"recipe": name, "B": 4}, dtype="float32", pass_name="step"))
    assert "eager" not in made.rivals
    losses = made.ours()
    made.check("ours", losses, made.reference())
    with pytest.raises(WrongResult, match="ours: losses"):
        made.check("ours", losses, 1.01 * made.reference())


OTHER_PIECES = [
    {"masker": RandomDrop(ratios=(0.75,), loss_mask="first")},
    {"targets": (PixelTarget(normalize=True, kind="l1"),)},
    {"heads": (DecoderConfig(width=32, depth=1, num_heads=2, match_scale=1.0),)},
    {"heads": (DecoderConfig(width=32, depth=1, num_heads=2, positions=False),)},
]


@pytest.mark.parametrize("pieces", OTHER_PIECES, ids=str)
def test_a_usual_form_is_of_every_piece(pieces):
    method = RECIPES["bim_vit_test"].config.method
    assert find_form(method) is not None
    assert find_form(replace(method, **pieces)) is None


def test_a_usual_form_has_one_decoder_and_one_target():
    method = RECIPES["bim_vit_test"].config.method
    for piece, changed in (("heads", {"width": 16}), ("targets", {"normalize": False})):
        (one,) = getattr(method, piece)
        assert find_form(replace(method, **{piece: (one,) * 4})) is not None
        assert find_form(replace(method, **{piece: (one, one, one, replace(one, **changed))})) is None


OTHER_SWINS = [
    {"masker": RandomUnits(ratio=0.75, mask_unit=4)},  # a mask for each image
    {"masker": SharedUnits(ratio=0.75, mask_unit=8)},
    {"taps": (1, 5)},
    {"targets": (HogTarget(),)},
]


@pytest.mark.parametrize("pieces", OTHER_SWINS, ids=str)
def test_a_usual_form_of_a_sparse_swin_is_that_of_greenmim(pieces):
    method = RECIPES["greenmim_swin_tiny_test"].config.method
    assert find_form(replace(method, masker=SharedUnits(ratio=0.6, mask_unit=4))) is not None
    assert find_form(replace(method, **pieces)) is None


def test_the_usual_sparse_swin_draws_a_mask_for_a_batch():
    _, usual, _ = pair("greenmim_swin_tiny_test")
    noise = torch.cat([usual.network.noise(2) for _ in range(10)])
    assert noise.sum(dim=1).tolist() == [12] * 20  # of 16 units
    assert torch.equal(noise[::2], noise[1::2])
    assert len({tuple(row) for row in noise.tolist()}) > 5


def test_every_base_recipe_is_in_the_table_and_none_for_tests():
    assert {"mae_vit_base", "bim_vit_base", "fastmim_vit_base", "vitfreeze_vit_base"} < set(BASE_RECIPES)
    swins = {"greenmim_swin_base", "localmim_swin_base", "simmim_swin_base", "simmim_swin_base_224", "bim_swin_base"}
    assert swins < set(BASE_RECIPES)
    assert {KNOWN[name].config.method.encoder.width for name in BASE_RECIPES} == {768, 128}
    alike = {
        "mae_vit_base_1600",
        "localmim_vit_base_1600",
        "vitfreeze_vit_base_published",
        "vitfreeze_vit_base_unscaled",
    }
    assert not alike & set(BASE_RECIPES)  # steps that are timed under another name
