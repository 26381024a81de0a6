"""What a program under torch.autocast hands to the ops: float32 parameters, activations in half, masks in bool."""

import pytest
import torch
from torch import nn

from bimkern.ops import (
    MatchLayers,
    gather_tokens,
    masked_loss,
    masked_pixel_loss,
    match_loss,
    restore_tokens,
    scale_mask,
)

B, N, K, D = 2, 16, 6, 8
KEEP = torch.tensor([[5, 0, 9, 2, 15, 3], [1, 2, 3, 4, 8, 7]])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_positions_and_mask_token_of_a_model_under_autocast(half):
    embed, pos = nn.Linear(D, D), nn.Parameter(torch.randn(N, D))
    mask_token = nn.Parameter(torch.randn(1, 1, D))
    with torch.autocast("cpu", dtype=half):
        visible = gather_tokens(embed(torch.randn(B, N, D)), KEEP, pos)
        assert visible.dtype == half
        out = restore_tokens(visible, KEEP, mask_token, pos, num_tokens=N)
    assert out.dtype == half
    out.float().square().sum().backward()
    for parameter in (embed.weight, pos, mask_token):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mask_token_may_have_the_shape_of_a_token(dtype):
    visible, pos = torch.randn(B, K, D, dtype=dtype), torch.randn(N, D)
    flat = torch.randn(D)
    found, wanted = (
        restore_tokens(visible, KEEP, token, positions, num_tokens=N)
        for token, positions in ((flat.view(1, 1, D), pos), (flat.to(dtype), pos.to(dtype)))
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_masks_of_any_dtype_weigh_the_same(dtype):
    mask = torch.rand(B, N) < 0.7
    pred, target = torch.randn(B, N, 12), torch.randn(B, N, 12)
    images = torch.randint(0, 256, (B, 3, 8, 8), dtype=torch.uint8)
    layers = MatchLayers(torch.randn(12, D, 1, 1), torch.randn(12))
    features = torch.randn(B, N, D)

    def losses(weight):
        yield masked_loss(pred, target, weight)
        yield match_loss(features, layers, target, weight, 1)
        yield masked_pixel_loss(pred, images, weight, patch=2).float()  # in float64 where the weight is

    for found, wanted in zip(losses(mask.to(dtype)), losses(mask.float()), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_a_bool_mask_is_scaled_to_weights(factor):
    mask = torch.rand(B, N) < 0.5
    assert torch.equal(scale_mask(mask, factor), scale_mask(mask.float(), factor))
