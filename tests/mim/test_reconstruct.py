"""Reconstructions say honestly what a model knows."""

from dataclasses import replace

import pytest
import torch

from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.reconstruct import gray_out, masked_errors, reconstruct, stage_name
from bimkern.mim.targets import PixelTarget, unpatchify
from bimkern.ops import masked_loss, pixel_targets, scale_mask
from bimkern.recipes import RECIPES

IDS = torch.arange(5)
EVERY_KIND = ("mae_vit_test", "localmim_vit_test", "localmim_vit_test_pixels", "bim_hog_vit_test", "fastmim_vit_test")
every_kind = pytest.mark.parametrize("recipe", EVERY_KIND)


def build(recipe="bim_vit_test_growing", **changes):
    torch.manual_seed(0)
    return MIM(replace(RECIPES[recipe].config.method, **changes))


def photos(model):
    size = model.method.encoder.image_size.height
    return torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)


def masked_pixels(view, images):
    return view.masked_share(tuple(images.shape[2:])).expand_as(images).bool()


def test_unpatchify_undoes_raw_targets():
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(unpatchify(pixel_targets(images, 8, normalize=False), 8, (2, 3)), images)


@every_kind
def test_visible_places_are_the_truth_and_masked_ones_the_prediction(recipe):
    model = build(recipe)
    for stage, result in enumerate(reconstruct(model, photos(model), IDS, seed=0)):
        masked = (result.masked > 0).expand_as(result.truth)
        assert masked.any()
        assert not masked.all() or model.method.head(stage).scale < 1  # a coarse cell is rarely visible as a whole
        assert torch.equal(result.pasted()[~masked], result.truth[~masked])
        assert torch.equal(result.pasted()[masked], result.predicted()[masked])
        assert not torch.isclose(result.pasted()[masked], result.truth[masked], atol=1e-6).all()


@every_kind
def test_predicting_the_target_reads_as_the_truth_and_has_no_error(recipe):
    """With statistics of the truth, where the target is normalized: without them brightness and contrast are lost."""
    model = build(recipe)
    images, encoder = photos(model), model.method.encoder
    for stage, result in enumerate(reconstruct(model, images, IDS, seed=0)):
        target, scale = model.method.target(stage), model.method.head(stage).scale
        perfect = replace(result, vectors=target.vectors(images, encoder.patch, scale, model.colors))
        statistics = perfect.renderer.statistics[-1]
        assert statistics == ("truth" if isinstance(target, PixelTarget) else "visible")
        torch.testing.assert_close(perfect.predicted(statistics), perfect.truth, rtol=1e-4, atol=1e-4)
        assert perfect.error(perfect.predicted(statistics)) < 1e-8 < perfect.error(result.predicted())


@pytest.mark.parametrize("recipe", ["demo", "localmim_vit_test", "bim_hog_vit_test", "fastmim_vit_test"])
def test_the_error_is_that_of_the_loss(recipe):
    """Where the target is in the units of the truth: raw pixels and histograms."""
    model = build(recipe)
    images, patch = photos(model), model.method.encoder.patch
    for stage, result in enumerate(reconstruct(model, images, IDS, seed=0)):
        scale = model.method.head(stage).scale
        target = model.method.target(stage).vectors(images, patch, scale, model.colors)
        loss = masked_loss(result.vectors, target, scale_mask(result.view.masked, scale))
        torch.testing.assert_close(result.error(result.predicted()), loss)


@pytest.mark.parametrize("recipe", ["bim_vit_test_growing", "localmim_vit_test_pixels"])
def test_honest_statistics_do_not_depend_on_masked_pixels(recipe):
    """Not even in cells that are partly masked, which a coarse grid has."""
    model = build(recipe)
    images = photos(model)
    for stage, result in enumerate(reconstruct(model, images, IDS, seed=0)):
        altered = torch.where(masked_pixels(result.view, images), 255 - images, images)
        again = replace(reconstruct(model, altered, IDS, seed=0)[stage], vectors=result.vectors)
        assert torch.equal(result.predicted(), again.predicted())
        assert not torch.equal(result.predicted("truth"), again.predicted("truth"))


def test_statistics_are_those_of_the_average_visible_patch():
    model = build()
    images = photos(model)
    result = reconstruct(model, images, IDS, seed=0)[0]
    patches = pixel_targets(model.colors.normalize(images), 8, normalize=False)
    visible = ~result.view.masked.bool()
    std = torch.stack([p[v].std(dim=1).mean() for p, v in zip(patches, visible, strict=True)])
    mean = torch.stack([p[v].mean() for p, v in zip(patches, visible, strict=True)])
    vectors = result.vectors * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(result.predicted(), unpatchify(vectors, 8, (4, 4)))


@pytest.mark.parametrize("recipe", ["bim_vit_test_growing", "localmim_vit_test_pixels"])
def test_a_flat_image_is_matched_by_its_mean_visible_color(recipe):
    """And missed by an untrained model, whose target has no room for the color."""
    model = build(recipe, targets=(PixelTarget(normalize=False),))
    errors, baselines = masked_errors(model, torch.full_like(photos(model), 200), IDS, seed=0)
    assert errors.shape == baselines.shape == (4,)
    assert (baselines < 1e-10).all()
    assert (errors > 0.01).all()


def test_repeated_edges_are_matched_by_their_mean_visible_histogram():
    model = build("localmim_vit_test")
    waves = (127 + 120 * torch.sin(torch.arange(64) * torch.pi / 2)).byte().expand(5, 3, 64, 64)
    errors, baselines = masked_errors(model, waves, IDS, seed=0)
    assert (baselines < 1e-2).all()
    assert (errors > baselines).all()


@pytest.mark.parametrize("recipe", ["mae_vit_test", "fastmim_vit_test", "simmim_vit_test", "maskfeat_vit_test"])
def test_what_is_masked_is_gray_whatever_the_embedding(recipe):
    model = build(recipe)
    images = photos(model)
    (result,) = reconstruct(model, images, IDS, seed=0)
    shown, masked = gray_out(model, images, result.view), masked_pixels(result.view, images)
    assert torch.equal(shown[~masked], (images / 255)[~masked])
    assert torch.equal(shown[masked], model.mean.view(-1, 1, 1).expand_as(images)[masked])
    assert masked.sum() == result.view.masked.sum() * 3 * model.method.encoder.patch**2


def test_images_of_another_size_are_read_on_their_own_grid():
    model = build("localmim_vit_test", masker=RandomDrop(ratios=(0.5,)))
    results = reconstruct(model, torch.randint(0, 256, (5, 3, 96, 32), dtype=torch.uint8), IDS, seed=0)
    assert [tuple(result.predicted().shape[1:]) for result in results] == [
        *((27, 24, 8), (27, 12, 4), (27, 6, 2), (27, 3, 1)),
    ]


def test_stages_are_named_by_the_layer_that_is_read():
    method = RECIPES["localmim_vit_test"].config.method
    assert [stage_name(method, stage) for stage in range(4)] == [f"after layer {k}" for k in (2, 4, 6, 8)]
