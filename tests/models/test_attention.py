"""Attention by name: every implementation computes the same."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from tolerance import assert_no_worse_than_torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.models import bf16_attention
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


SHAPES = [(2, 7, 7, 3, 8), (5, 1, 9, 2, 16), (3, 197, 197, 4, 32), (1, 50, 3, 1, 64), (2, 6, 5, 3, 7)]  # B T S H E


@pytest.mark.parametrize(("B", "T", "S", "H", "E"), SHAPES)
@pytest.mark.parametrize("heads", [1, 64])
def test_bf16_on_a_cpu_is_no_worse_than_torch(monkeypatch, B, T, S, H, E, heads):
    monkeypatch.setattr(bf16_attention, "_HEADS", heads)
    q = torch.randn(B, T, H, E).bfloat16()
    k, v = torch.randn(B, S, 2, H, E).bfloat16().unbind(2)  # not contiguous
    assert bf16_attention.takes(q.clone().requires_grad_(), k)
    assert_no_worse_than_torch(sdpa, attention_reference, (q, k, v), grads=(0, 1, 2))


def test_bf16_gradients_do_not_depend_on_the_batch(monkeypatch):
    """Images are copied to float32 a few at a time."""
    monkeypatch.setattr(bf16_attention, "_HEADS", 3)
    q, k, v = (torch.randn(5, 9, 2, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    cotangent = torch.randn(5, 9, 2, 8).bfloat16()
    together = torch.autograd.grad(sdpa(q, k, v), (q, k, v), cotangent)
    for i in range(5):
        one = [x[i : i + 1].detach().requires_grad_() for x in (q, k, v)]
        alone = torch.autograd.grad(sdpa(*one), one, cotangent[i : i + 1])
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


def test_bf16_gradients_go_to_those_that_ask():
    q, k, v = (torch.randn(2, 5, 2, 8, dtype=torch.bfloat16) for _ in range(3))
    expected = torch.autograd.grad(sdpa(q.requires_grad_(), k, v).sum(), q)
    k.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(sdpa(q, k, v).sum(), q), expected, rtol=0, atol=0)


OTHERS = [{"dtype": torch.float32}, {"size": (2, 0, 2, 8)}, {"requires_grad": False}]


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_all_other_attention_is_torchs(change):
    q = torch.randn(**{"size": (2, 5, 2, 8), "dtype": torch.bfloat16, "requires_grad": True} | change)
    assert not bf16_attention.takes(q, q)
    assert sdpa(q, q, q).shape == q.shape
    with torch.no_grad():
        assert not bf16_attention.takes(q, q)


@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_a_torch_without_these_kernels_takes_its_own_attention(monkeypatch, name):
    monkeypatch.setattr(bf16_attention, name, None)
    q = torch.randn(2, 5, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    assert not bf16_attention.takes(q, q)
    assert sdpa(q, q, q).grad_fn is not None


def test_kernels_that_torch_lacks_are_no_error_on_import(monkeypatch):
    monkeypatch.setattr(torch.ops, "aten", SimpleNamespace())
    try:
        assert importlib.reload(bf16_attention)._forward is None
    finally:
        monkeypatch.undo()
        importlib.reload(bf16_attention)


def test_bf16_attention_has_no_second_gradient():
    q = torch.randn(2, 5, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    (grad,) = torch.autograd.grad(sdpa(q, q, q).float().square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_bf16_attention_compiles_and_is_traced_without_memory():
    q = torch.randn(2, 5, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    (expected,) = torch.autograd.grad(sdpa(q, q, q).sum(), q)
    (compiled,) = torch.autograd.grad(torch.compile(sdpa, fullgraph=True, backend="aot_eager")(q, q, q).sum(), q)
    torch.testing.assert_close(compiled, expected)
    with FakeTensorMode():
        fake = torch.randn(10**10, 5, 2, 8, dtype=torch.bfloat16, requires_grad=True)  # in no more operations than two
        (grad,) = torch.autograd.grad(sdpa(fake, fake, fake).sum(), fake)
    assert grad.shape == fake.shape


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


@pytest.mark.parametrize("bias", [True, False])
def test_attention_to_a_context_takes_any_linear_layer_for_qkv(bias):
    attention, x = Attention(8, 2).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    attention.qkv = torch.nn.Linear(8, 24, bias=bias, dtype=torch.float64)
    torch.testing.assert_close(attention(x[:, :3], x), attention(x)[:, :3])
