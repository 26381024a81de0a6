"""Reconstructions say honestly what a model knows."""

from dataclasses import replace

import torch

from bimkern.mim.model import MIM
from bimkern.mim.reconstruct import hidden_errors, paste_visible, reconstruct
from bimkern.mim.targets import PixelTarget, unpatchify
from bimkern.ops import pixel_targets
from bimkern.recipes import RECIPES

IDS = torch.arange(5)


def build(*, normalize):
    torch.manual_seed(0)
    method = RECIPES["bim_vit_test_growing"].config.method
    return MIM(replace(method, targets=(PixelTarget(normalize=normalize),)))


def photos():
    return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)


def test_unpatchify_undoes_raw_targets():
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(unpatchify(pixel_targets(images, 8, normalize=False), 8, (2, 3)), images)


def test_pasting_the_truth_gives_the_original():
    model, images = build(normalize=False), photos()
    truth = pixel_targets(model.normalize(images), 8, normalize=False)
    for result in reconstruct(model, images, IDS, seed=0):
        pasted = paste_visible(model, images, replace(result, vectors=truth))
        torch.testing.assert_close(pasted, images / 255, rtol=0, atol=1e-6)


def test_visible_patches_are_shown_as_they_are_and_hidden_ones_as_predicted():
    model, images = build(normalize=False), photos()
    result = reconstruct(model, images, IDS, seed=0)[1]
    shown = pixel_targets(paste_visible(model, images, result), 8, normalize=False)
    original = pixel_targets(images / 255, 8, normalize=False)
    hidden = result.hidden.bool()
    torch.testing.assert_close(shown[~hidden], original[~hidden], rtol=0, atol=1e-6)
    assert not torch.isclose(shown[hidden], original[hidden], atol=1e-3).all()


def test_honest_statistics_do_not_depend_on_hidden_pixels():
    model, images = build(normalize=True), photos()
    result = reconstruct(model, images, IDS, seed=0)[0]
    hidden = unpatchify(result.hidden.unsqueeze(-1).expand(-1, -1, 8 * 8 * 3), 8, (4, 4)).bool()
    altered = torch.where(hidden, 255 - images, images)
    again = reconstruct(model, altered, IDS, seed=0)
    assert torch.equal(result.vectors, again[0].vectors)
    leaking = [reconstruct(model, pixels, IDS, 0, "truth")[0].vectors for pixels in (images, altered)]
    assert not torch.equal(*leaking)


def test_hidden_errors_measure_hidden_patches_only():
    """A flat image is guessed exactly by its mean visible colour, and missed by an untrained model."""
    model = build(normalize=False)
    errors, baselines = hidden_errors(model, torch.full((5, 3, 32, 32), 200, dtype=torch.uint8), IDS, seed=0)
    assert errors.shape == baselines.shape == (4,)
    assert (baselines < 1e-10).all()
    assert (errors > 0.01).all()
