"""What enters the encoder, against the plain form: embed or paint everything, then overwrite."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bimkern.mim.mask_embedding import MaskPixels
from bimkern.mim.masking.blockwise import Blockwise
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import BlockPixels, TokenReplace
from bimkern.mim.model import MIM
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import RECIPES

METHOD = RECIPES["simmim_vit_test"].config.method
B = 3


def build(masker):
    torch.manual_seed(0)
    model = MIM(replace(METHOD, masker=masker)).double()
    set_compute_dtype(model, torch.float64)
    return model


def embedded(model, pixels):
    """All patches as tokens, without positions."""
    embed = model.encoder.patch_embed
    return F.conv2d(pixels, embed.weight, embed.bias, stride=METHOD.encoder.patch).flatten(2).mT


def sample(model, size=64):
    images = torch.randint(0, 256, (B, 3, size, size), dtype=torch.uint8)
    return images, model.views(images, torch.arange(B), seed=1)[0]


def entered(model, images, view):
    return model.mask_embedding(model.encoder, images, view, model.mean, model.std)


def assert_tokens(tokens, model, images, patches):
    expected = torch.cat([model.encoder.cls_token.expand(B, -1, -1), patches + model.encoder.pos_embed(images)], dim=1)
    torch.testing.assert_close(tokens, expected, rtol=1e-10, atol=1e-10)


MASKERS = [
    TokenReplace(ratio=0.6, mask_unit=2),
    Blockwise(ratio=0.4),
    Blockwise(ratio=0.4, exact=False),
]


@pytest.mark.parametrize("masker", MASKERS, ids=str)
@pytest.mark.parametrize("size", [64, 96])
def test_a_token_takes_the_place_of_masked_embeddings(masker, size):
    model = build(masker)
    images, view = sample(model, size)
    patches = embedded(model, model.colors.normalize(images))
    patches = torch.where(view.masked.unsqueeze(-1) > 0, model.mask_embedding.mask_token, patches)
    assert_tokens(entered(model, images, view), model, images, patches)


@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("size", [64, 96])
def test_painting_is_painting_the_image(unit, size):
    model = build(BlockPixels(ratio=0.75, mask_unit=unit))
    images, view = sample(model, size)
    masked = view.masked.view(B, 1, *view.grid).repeat_interleave(16, 2).repeat_interleave(16, 3)
    painted = model.colors.normalize(images) * (1 - masked) + masked * model.mask_embedding.mask_token
    assert_tokens(entered(model, images, view), model, images, embedded(model, painted))


@pytest.mark.parametrize("masker", [MASKERS[0], MASKERS[2], BlockPixels(ratio=0.75)], ids=str)
def test_gradients_reach_the_token_and_the_embedding(masker):
    model = build(masker)
    images, view = sample(model)
    direction = torch.randn_like(entered(model, images, view))
    (entered(model, images, view) * direction).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == {"mask_embedding.mask_token", "encoder.cls_token"} | {
        f"encoder.patch_embed.{name}" for name in ("weight", "bias")
    }
    model.zero_grad()
    pixels = model.colors.normalize(images)
    masked = view.masked.unsqueeze(-1)
    if masker.mask_embedding is MaskPixels:
        mask = view.masked.view(B, 1, *view.grid).repeat_interleave(16, 2).repeat_interleave(16, 3)
        patches = embedded(model, torch.where(mask > 0, model.mask_embedding.mask_token, pixels))
    else:
        patches = torch.where(masked > 0, model.mask_embedding.mask_token, embedded(model, pixels))
    plain = torch.cat([model.encoder.cls_token.expand(B, -1, -1), patches], dim=1)
    (plain * direction).sum().backward()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, dict(model.named_parameters())[name].grad, rtol=1e-9, atol=1e-9)


def test_dropped_patches_do_not_enter():
    torch.manual_seed(0)
    method = RECIPES["mae_vit_test"].config.method
    assert isinstance(method.masker, RandomDrop)
    model = MIM(method)
    images, view = sample(model, 32)
    assert entered(model, images, view).shape == (B, 1 + 4, 32)
