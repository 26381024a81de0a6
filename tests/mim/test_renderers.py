"""Renderers: every prediction is at its position, and its picture shows it."""

from dataclasses import replace

import pytest
import torch

from bimkern.image_size import ImageSize
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.renderers import renderer_for
from bimkern.mim.targets import HogTarget
from bimkern.ops import hog
from bimkern.recipes import RECIPES


def renderer_of(recipe, stage=0, **changes):
    return renderer_for(MIM(replace(RECIPES[recipe].config.method, **changes)), stage)


def photos(size=64):
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("recipe", "stage", "cell"),
    [
        ("localmim_vit_test", 0, 4),
        ("localmim_vit_test", 3, 32),
        ("fastmim_vit_test", 0, 8),
        ("maskfeat_vit_test", 0, 8),
    ],
)
def test_histograms_stand_at_their_cells(recipe, stage, cell):
    images = photos()
    positions = renderer_of(recipe, stage).truth(images)
    expected = hog(images, cell, 9).unflatten(1, (64 // cell, 64 // cell)).permute(0, 3, 1, 2)
    assert torch.equal(positions, expected)


def test_histograms_of_a_resized_image_stand_at_their_cells_too():
    renderer = renderer_of("mae_vit_test", targets=(HogTarget(cells=2, resize_patch=16),))
    assert renderer.truth(photos(32)).shape == (2, 27, 8, 8)


def test_a_picture_of_pixels_is_the_photograph():
    images, renderer = photos(), renderer_of("simmim_vit_test")
    size = renderer.size(renderer.truth(images))
    assert (size, renderer.size(torch.zeros(1, 3, 224, 224))) == (ImageSize.square(192), ImageSize.square(224))
    picture = renderer.draw(renderer.truth(images)[1], size)
    enlarged = (images[1] / 255).repeat_interleave(3, 1).repeat_interleave(3, 2)
    torch.testing.assert_close(picture, enlarged, rtol=0, atol=1e-6)
    assert renderer.target_name(renderer.truth(images)) is None


def test_a_picture_of_histograms_shows_their_strokes_whatever_their_length():
    images, renderer = photos(), renderer_of("localmim_vit_test")
    truth = renderer.truth(images)
    assert renderer.size(truth) == ImageSize.square(160)
    assert renderer.size(torch.zeros(1, 27, 56, 56)) == ImageSize.square(336)
    assert renderer.target_name(truth) == "target, 16 x 16"
    picture = renderer.draw(truth[0], ImageSize.square(240))
    assert picture.shape == (3, 240, 240)
    assert picture.max() > 0.5
    shortened = torch.where(truth[0] > 0, 0.1 * truth[0], -0.5)  # as a prediction may be
    torch.testing.assert_close(renderer.draw(shortened, ImageSize.square(240)), picture)
    half = renderer.draw(torch.cat([torch.zeros(27, 8, 16), truth[0, :, 8:]], dim=1), ImageSize.square(240))
    assert not half[:, :120].any()
    torch.testing.assert_close(half[:, 120:], picture[:, 120:])


@pytest.mark.parametrize(
    ("recipe", "legend", "note", "baseline"),
    [
        ("simmim_vit_test", "no statistics of the truth are used", "", "the mean visible color"),
        ("mae_vit_test", "masked truth, which leaks", "may still lose to the baseline", "the mean visible color"),
        (
            "localmim_vit_test",
            "no statistics of the truth are used; all are drawn at length 1",
            "",
            "the mean visible histogram",
        ),
    ],
)
def test_what_was_used_is_said(recipe, legend, note, baseline):
    renderer = renderer_of(recipe)
    assert legend in renderer.legend
    assert note in renderer.note
    assert bool(note) == bool(renderer.note)
    assert renderer.baseline == baseline
