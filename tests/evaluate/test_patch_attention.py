"""Attention among patches: where the patches lie, and which layers can be compared."""

import pytest
import torch
from torch import nn

from bimkern.evaluate.errors import EvaluationError
from bimkern.evaluate.patch_attention import among_patches, capture
from bimkern.models.attention_maps import AttentionMaps
from bimkern.models.cmt import CMTConfig
from bimkern.models.layers import Attention
from bimkern.models.vit import ViTConfig

VIT = ViTConfig(width=12, depth=2, num_heads=3, patch=16, image_size=64)
CMT = CMTConfig(widths=(8,), depths=(1,), num_heads=(1,), reductions=(2,), image_size=64)


def maps_of(weights, key_side=1):
    """Return global maps of weights [B, H, Q, K]."""
    queries, keys = (torch.arange(count).unsqueeze(0) for count in weights.shape[2:])
    return AttentionMaps(weights.unsqueeze(1), queries, keys, key_side)


def test_distances_are_between_centers_in_pixels_without_the_class_token():
    weights = torch.rand(2, 3, 7, 7).softmax(dim=-1)
    (found,) = among_patches([[maps_of(weights)]], VIT, 0, (32, 48))  # 2 x 3 patches
    assert found.weights.shape == (2, 1, 3, 6, 6)
    torch.testing.assert_close(found.weights.sum(dim=-1), torch.ones(2, 1, 3, 6))
    expected = 16 * torch.tensor([0, 1, 2, 1, 2**0.5, 5**0.5])  # from the first, row by row
    torch.testing.assert_close(found.distances[0, 0], expected)


def test_a_key_of_several_patches_lies_in_their_middle():
    (found,) = among_patches([[maps_of(torch.full((1, 1, 8, 2), 0.5), key_side=2)]], CMT, 0, (8, 16))  # 2 x 4 of 4 px
    diagonal = 4 * 0.5**0.5
    torch.testing.assert_close(found.distances[0, 0], torch.tensor([diagonal, 4 * (0.5**2 + 2.5**2) ** 0.5]))
    torch.testing.assert_close(found.distances[0, 7, 1].item(), diagonal)


def test_only_maps_of_the_same_tokens_have_one_layout():
    layouts = {
        name: among_patches([[maps_of(torch.ones(1, 1, *shape), side)]], config, 0, (16, 16))[0].layout
        for name, shape, side, config in (
            ("all", (16, 16), 1, CMT),
            ("all again", (16, 16), 1, CMT),
            ("squares", (16, 4), 2, CMT),
        )
    }
    assert layouts["all"] == layouts["all again"] != layouts["squares"]


def test_what_is_captured_is_what_runs():
    first, second = Attention(12, 3), Attention(12, 2)
    x = torch.randn(2, 5, 12)
    with capture(nn.Sequential(first, second)) as captured:
        second(x)
        assert [one.weights.shape for maps in captured for one in maps] == [(2, 1, 2, 5, 5)]
        captured.clear()
        first(x)
        first(x)
    with pytest.raises(EvaluationError, match="ViTConfig: layer 1 must hold one module with attention_maps, got 2"):
        among_patches(captured, VIT, 0, (32, 32))
    captured.clear()
    first(x)
    assert not captured


def test_maps_of_other_tokens_are_refused():
    message = "ViTConfig: attention_maps of layer 2 must be of all patches, got 4"
    with pytest.raises(EvaluationError, match=message):
        among_patches([[maps_of(torch.ones(1, 1, 5, 5))]], VIT, 1, (32, 48))
