"""Methods on images that are no squares: their losses are those of plain computations."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.eager.form import find_form
from bench.eager.loop import usual_loop
from bench.entry import Case
from bench.training import Ours
from bimkern.image_size import ImageSize
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.reconstruct import reconstruct
from bimkern.models.encoder import WholeImages
from bimkern.models.vit import ViTConfig
from bimkern.recipes import RECIPES

METHODS = {
    "mae_vit_test": (24, 64),
    "bim_vit_test": (64, 24),
    "bim_vit_test_growing": (24, 64),
    "bim_vit_test_light": (24, 64),
    "simmim_vit_test": (64, 128),
    "bim_simmim_vit_test": (128, 64),
    "maskfeat_vit_test": (48, 80),
    "bim_maskfeat_vit_test": (80, 48),
    "localmim_vit_test": (64, 96),
    "localmim_vit_test_biased": (96, 64),
    "localmim_vit_test_pixels": (64, 96),
    "localmim_vit_test_isolated_growing": (64, 96),
    "vitfreeze_vit_test": (64, 96),
    "fastmim_vit_test": (64, 96),
    "bim_hog_vit_test": (48, 80),
    "greenmim_swin_tiny_test": (64, 96),
    "localmim_swin_tiny_test": (96, 64),
    "bim_swin_tiny_test": (64, 96),
    "simmim_swin_tiny_test": (64, 128),
    "fastmim_swin_tiny_test": (32, 96),
    "fastmim_cmt_test": (64, 96),
}


class NoUpdate:
    def scale(self, loss):
        return loss

    def apply(self):
        pass


def config_of(recipe, size):
    config = RECIPES[recipe].config
    return replace(config, method=replace(config.method, encoder=config.method.encoder.resized(ImageSize(*size))))


def images_of(size):
    return torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)


def plain_loss(model, stage, tokens, images, view):
    """The masked error as it is defined: every cell is predicted, and weighs what is masked of it."""
    method = model.method
    target, scale, level = method.target(stage), method.head(stage).scale, method.level(stage)
    predicted = model.predict(stage, tokens, view)
    truth = target.vectors(images, level.patch, scale, model.colors)
    error = predicted - truth
    error = (error.square() if target.kind == "l2" else error.abs()).mean(dim=-1)  # [B, M]
    rows, columns = (int(side // level.patch * scale) for side in images.shape[2:])
    pixels = view.masked.unflatten(1, (1, *view.grid))
    pixels = F.interpolate(pixels, images.shape[2:], mode="nearest")
    weight = F.avg_pool2d(pixels, (images.shape[2] // rows, images.shape[3] // columns)).flatten(1)
    return (error * weight).sum() / weight.sum()


@pytest.mark.parametrize(("recipe", "size"), METHODS.items(), ids=METHODS)
def test_the_losses_of_a_step_are_the_masked_errors(recipe, size):
    torch.manual_seed(0)
    model, images = MIM(config_of(recipe, size).method).train(), images_of(size)
    flow, ids = model.method.flow, torch.arange(3)
    views = model.views(images, ids, 0)
    updates = [NoUpdate() for _ in flow.partition(model)]
    losses = flow.step(model, [MicroBatch(images, views)], updates, StepOptions(slices=2))
    tokens, expected = images, []
    for stage, view in enumerate(views):
        tokens = model.encode(stage, tokens, view)
        expected.append(plain_loss(model, stage, tokens, images, view))
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test", "bim_vit_test_growing", "greenmim_swin_tiny_test"])
def test_the_usual_form_has_the_same_losses_on_the_same_mask(recipe):
    config, size = config_of(recipe, METHODS[recipe]), METHODS[recipe]
    case = Case(device=torch.device("cpu"), dims={"recipe": recipe, "B": 3}, dtype="float32", pass_name="step")
    images = images_of(size)
    ours = Ours(config, case, images)
    usual = usual_loop(find_form(config.method), config.optim, case.torch_dtype, case.device)
    usual.network.load_state_dict(ours.model.state_dict())
    losses = ours.step(slices=2)
    torch.testing.assert_close(usual.step(images, ours.noise()), losses, rtol=1e-5, atol=0)


def test_a_vit_sees_a_transposed_image_as_the_image_with_transposed_patches_and_positions():
    config = ViTConfig(width=16, depth=2, num_heads=2, patch=8, image_size=(24, 40))
    encoder, turned = config.module(config), config.module(config.resized((40, 24)))
    order = torch.arange(15).view(3, 5).T.flatten()  # of the patches of the transposed image
    weights = encoder.state_dict()
    weights["patch_embed.weight"] = weights["patch_embed.weight"].mT
    table = encoder.positions.computed(config.grid)[0]
    weights["positions.table"] = torch.cat([table[:1], table[1:][order]])[None]
    turned.load_state_dict(weights)
    images = torch.randn(2, 3, 24, 40)
    tokens, others = encoder.embed(images), turned.embed(images.mT)
    for layer in range(2):
        tokens = encoder.run_layer(layer, tokens, WholeImages((3, 5)))
        others = turned.run_layer(layer, others, WholeImages((5, 3)))
    torch.testing.assert_close(others[:, 1:], tokens[:, 1:][:, order])
    torch.testing.assert_close(others[:, 0], tokens[:, 0])


@pytest.mark.parametrize("recipe", ["mae_vit_test", "simmim_swin_tiny_test", "localmim_vit_test"])
def test_reconstructions_are_drawn_in_the_shape_of_the_images(recipe):
    size = METHODS[recipe]
    model, images = MIM(config_of(recipe, size).method), images_of(size)
    for result in reconstruct(model, images, torch.arange(3), 0):
        drawn = result.renderer.size(result.truth)
        assert math.isclose(drawn.height / drawn.width, size[0] / size[1])
        assert drawn.width >= 160
        assert result.renderer.draw(result.predicted()[0], drawn).shape == (3, *drawn)
        target = model.method.target(len(model.method.taps) - 1)
        if recipe == "simmim_swin_tiny_test":  # raw pixels: vectors of the truth are the truth
            vectors = target.vectors(images, model.method.level(0).patch, model.method.head(0).scale, model.colors)
            read = result.renderer.read(vectors, result.grid, result.truth, 1 - result.masked, "visible")
            torch.testing.assert_close(read, result.truth)


@pytest.mark.parametrize(
    ("recipe", "size", "words"),
    [
        ("localmim_vit_test", (48, 64), r"Method: image_size=48x64 with patch=16 makes 3 x 4 patches, which head 3"),
        ("simmim_vit_test", (64, 80), "TokenReplace: mask_unit must divide the 4 x 5 patches, got 2"),
        ("greenmim_swin_tiny_test", (64, 72), "SwinConfig: image_size must be a multiple of 16, .* got 64x72"),
        ("fastmim_cmt_test", (64, 72), "CMTConfig: image_size must be a multiple of 16, got 64x72"),
    ],
)
def test_what_does_not_fit_is_refused(recipe, size, words):
    with pytest.raises(ValueError, match=words):
        config_of(recipe, size)
