"""Attention by name: every implementation computes the same."""

import importlib

import pytest
import torch
from tolerance import assert_no_worse_than_torch

from bimkern.models.attention import choose, sdpa
from bimkern.models.layers import Attention, TransformerLayer, set_attention, set_compute_dtype

CPU = torch.device("cpu")


def attention_reference(q, k, v):
    """Vaswani et al. 2017, equation 1, in every head; [B, T, H, E]."""
    weights = (torch.einsum("bthe,bshe->bhts", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhts,bshe->bthe", weights, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_equals_reference(standins, name, dtype):
    q, k, v = (torch.randn(2, 7, 3, 8, dtype=dtype) for _ in range(3))
    assert_no_worse_than_torch(choose(name, CPU, dtype), attention_reference, (q, k, v), grads=(0, 1, 2))


def test_a_model_is_set_to_one_attention(standins):
    model = torch.nn.Sequential(TransformerLayer(32, 2), TransformerLayer(32, 4)).double()
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    expected = model(x)
    set_attention(model, choose("xformers", CPU, torch.float64))
    seen = importlib.import_module("xformers.ops").seen
    seen.clear()
    torch.testing.assert_close(model(x), expected)
    assert seen == [torch.float64] * 2
    set_compute_dtype(model, torch.bfloat16)
    model(x)
    assert seen[2:] == [torch.bfloat16] * 2
    set_attention(model, sdpa)
    model(x)
    assert len(seen) == 4


def test_every_head_attends_on_its_own():
    layer = Attention(32, 4)
    x = torch.randn(1, 6, 32)
    first = layer.qkv.weight.data.view(3, 4, 8, 32)[:, 0]
    before = []
    layer.proj.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0].unflatten(-1, (4, 8))))
    layer(x)
    first += 1
    layer(x)
    assert not torch.equal(before[0][:, :, 0], before[1][:, :, 0])
    assert torch.equal(before[0][:, :, 1:], before[1][:, :, 1:])
