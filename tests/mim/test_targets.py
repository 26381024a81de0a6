"""Targets: cell sizes from patch and scale, layouts, families of histograms, and what cannot be."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.mim.targets import Colors, HogTarget, PixelTarget, cell_side, hog_vectors, unpatchify
from bimkern.ops import hog
from bimkern.recipes import RECIPES

IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


COLORS = Colors(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4]))


@pytest.mark.parametrize(("scale", "cell"), [(4, 4), (2, 8), (1, 16), (0.5, 32)])
def test_cells_follow_patch_and_scale(scale, cell):
    """56, 28, 14 and 7 cells a side at 224 pixels."""
    assert cell_side(16, scale) == cell
    assert HogTarget().side(16, scale) == cell
    assert torch.equal(HogTarget().vectors(IMAGES, 16, scale, COLORS), hog(IMAGES, cell))
    assert PixelTarget().vectors(IMAGES, 16, scale, COLORS).shape == (2, 64 * 96 // cell**2, 3 * cell**2)
    assert HogTarget(bins=18).length(3, 16, scale) == 54
    assert PixelTarget().length(3, 16, scale) == 3 * cell**2


def test_several_cells_make_one_vector():
    """MaskFeat and FastMIM: 2 x 2 cells of 8 pixels in a patch of 16, 108 values."""
    target = HogTarget(cells=2)
    assert target.length(3, 16) == 108
    assert torch.equal(target.vectors(IMAGES, 16, 1.0, COLORS), hog(IMAGES, 8, patch=16))


@dataclass(frozen=True)
class Constant:
    """A target that is computed together with others of its class, whatever theirs is."""

    value: float = 1.0
    kind: str = "l2"
    family: ClassVar[str] = "constant"

    def length(self, channels, patch, scale=1.0):
        return 1

    def vectors(self, images, patch, scale, colors):
        return torch.full((len(images), 16, 1), self.value)

    def joint_vectors(self, members, images, patch, scales, colors):
        return [type(self).vectors(member, images, patch, 1.0, colors) for member in members]


class Negative(Constant):
    def vectors(self, images, patch, scale, colors):
        return -super().vectors(images, patch, scale, colors)


def test_targets_of_two_classes_are_not_computed_together():
    base = RECIPES["bim_vit_test"].config.method
    model = MIM(replace(base, targets=(Constant(1.0), Negative(2.0), Constant(3.0), Negative(4.0))))
    found = model.targets(range(4), torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [found[stage].vectors[0, 0].item() for stage in range(4)] == [1.0, -2.0, 3.0, -4.0]


def test_a_family_is_computed_in_one_pass():
    targets, scales = [HogTarget()] * 4, [4, 2, 1, 0.5]
    together = hog_vectors(targets, IMAGES, 16, scales, COLORS)
    for target, scale, vectors in zip(targets, scales, together, strict=True):
        alone = target.vectors(IMAGES, 16, scale, COLORS)
        torch.testing.assert_close(vectors, alone, rtol=1e-5, atol=1e-6)  # coarse sums in another order


def test_a_bias_is_of_its_own_scale_and_needs_normalized_pixels():
    targets = [HogTarget(bias=(0.1, -0.2)), HogTarget(bias=(0.3, 0.0))]
    assert targets[0].family == targets[1].family != HogTarget().family
    fine, coarse = hog_vectors(targets, IMAGES, 16, [2, 1], COLORS)
    assert torch.equal(fine, hog(COLORS.normalize(IMAGES), 8, bias=(0.1, -0.2)))
    assert torch.equal(coarse, hog(COLORS.normalize(IMAGES), 16, bias=(0.3, 0.0)))


def test_a_patch_without_whole_cells_takes_them_from_a_resized_image():
    with pytest.raises(ValueError, match=r"a patch of 14 pixels has no 1 x 1 cells .* at scale 4; resize_patch=16"):
        HogTarget().length(3, 14, 4)
    target = HogTarget(resize_patch=16)
    images = IMAGES[:, :, :56, :70]
    assert target.vectors(images, 14, 4, COLORS).shape == (2, 16 * 20, 27)
    flat = torch.full_like(images, 9)
    assert not target.vectors(flat, 14, 1, COLORS).any()


@pytest.mark.parametrize("name", ["fastmim_vit_test", "maskfeat_vit_test", "localmim_vit_test"])
def test_a_step_builds_no_layer(monkeypatch, name):
    """The published program of FastMIM builds a new HOG layer in every step, and moves it to the device."""
    model, plain, built = MIM(RECIPES[name].config.method), nn.Module.__init__, []

    def build(self, *args, **options):
        built.append(type(self))
        plain(self, *args, **options)

    monkeypatch.setattr(nn.Module, "__init__", build)
    images = IMAGES[:, :, :64, :64]
    updates = [Ignore() for _ in model.method.flow.partition(model)]
    batch = MicroBatch(images, model.views(images, torch.arange(2), seed=0))
    assert model.method.flow.step(model, [batch], updates).isfinite().all()
    assert built == []
    nn.Identity()
    assert built == [nn.Identity]


class Ignore:
    """An update that learns nothing."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"a patch of 14 pixels has no cells of a whole number of pixels at scale 4"):
        PixelTarget().length(3, 14, 4)
    with pytest.raises(ValueError, match=r"HogTarget: a patch of 16 pixels has no 3 x 3 cells .* at scale 1.0; resize"):
        HogTarget(cells=3).length(3, 16, 1.0)
    with pytest.raises(ValueError, match=r"HogTarget: a patch of 18 pixels has no 4 x 4 cells .* at scale 1.0$"):
        HogTarget(cells=4, resize_patch=18).length(3, 16, 1.0)


def test_unpatchify_is_the_inverse_of_raw_pixel_targets():
    vectors = PixelTarget(normalize=False).vectors(IMAGES, 16, 1.0, COLORS)
    torch.testing.assert_close(unpatchify(vectors, 16, (4, 6)), COLORS.normalize(IMAGES))
