"""The product by a weight has torch's values, computed by torch or by oneDNN."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.models import product
from bimkern.models.product import multiply

ROWS, WIDTH, OUT = 24, 48, 32


@pytest.fixture
def onednn(monkeypatch):
    """Let oneDNN compute all that it may, on any machine; return how often it did."""
    calls = []
    by_onednn = product._by_onednn

    def counted(*args):
        calls.append(args)
        return by_onednn(*args)

    monkeypatch.setattr(product, "_by_onednn", counted)
    monkeypatch.setattr(product, "_is_faster", lambda: True)
    monkeypatch.setattr(product, "_MIN_MULTIPLY_ADDS", 1)
    return calls


def inputs(*shape, dtype=torch.float32):
    x = torch.randn(*shape, WIDTH, dtype=dtype)
    return [
        tensor.requires_grad_() for tensor in (x, torch.randn(OUT, WIDTH, dtype=dtype), torch.randn(OUT, dtype=dtype))
    ]


@pytest.mark.parametrize("shape", [(), (ROWS,), (2, ROWS), (1, 1)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_has_torchs_values_and_gradients(onednn, shape, with_bias):
    leaves = inputs(*shape)[: 2 + with_bias]
    x, weight, bias = [*leaves, None][:3]
    out, wanted = multiply(x, weight, bias, None), F.linear(x, weight, bias)
    torch.testing.assert_close(out, wanted)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, cotangent)
    for got, want in zip(found, torch.autograd.grad(wanted, leaves, cotangent), strict=True):
        torch.testing.assert_close(got, want)
    assert len(onednn) == 2


def test_rows_of_a_weight_are_one_too(onednn):
    x, weight, _ = inputs(ROWS)
    x.requires_grad_(False)
    upper, lower = weight.split([8, OUT - 8])
    torch.testing.assert_close(multiply(x, lower, None, None), F.linear(x, weight)[:, 8:])
    (found,) = torch.autograd.grad(multiply(x, upper, None, None).sum(), weight)
    torch.testing.assert_close(found[:8], x.sum(0).expand(8, WIDTH))
    assert not found[8:].any()
    assert len(onednn) == 2


def test_frozen_tensors_get_no_gradients(onednn):
    x, weight, bias = inputs(ROWS)
    weight.requires_grad_(False)
    multiply(x, weight, bias, None).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(ROWS, WIDTH))
    torch.testing.assert_close(bias.grad, torch.full_like(bias, ROWS))
    assert len(onednn) == 2


def test_gradients_have_gradients(onednn):
    leaves = inputs(ROWS)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]

    def second(function, leaves):
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), leaves)

    for got, torchs, want in zip(
        second(lambda *args: multiply(*args, None), leaves),
        second(F.linear, leaves),
        second(F.linear, exact),
        strict=True,
    ):
        error, allowed = (got - want).abs().max(), (torchs - want).abs().max()
        assert error <= 4 * allowed
    assert onednn


def test_without_memory_for_its_code_it_raises(onednn, monkeypatch):
    monkeypatch.setattr(product, "_CODE_BYTES", 2**62)
    with pytest.raises(MemoryError):
        multiply(*inputs(ROWS + 1), None)


def test_a_trace_without_memory_has_its_shapes(onednn):
    with FakeTensorMode():
        x, weight, bias = inputs(2, ROWS)
        out = multiply(x, weight, bias, None)
        out.sum().backward()
    assert out.shape == (2, ROWS, OUT)
    assert x.grad.shape == x.shape
    assert len(onednn) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_torchs(onednn, dtype):
    x, weight, bias = inputs(ROWS, dtype=dtype)
    assert torch.equal(multiply(x, weight, bias, None), F.linear(x, weight, bias))
    wide = inputs(ROWS)
    assert torch.equal(multiply(*wide, dtype), F.linear(*(tensor.to(dtype) for tensor in wide)))
    assert onednn == []


def test_small_products_and_other_machines_are_torchs(onednn, monkeypatch):
    monkeypatch.setattr(product, "_MIN_MULTIPLY_ADDS", ROWS * WIDTH * OUT + 1)
    x, weight, bias = inputs(ROWS)
    multiply(x, weight, bias, None)
    monkeypatch.setattr(product, "_MIN_MULTIPLY_ADDS", ROWS * WIDTH * OUT)
    monkeypatch.setattr(product, "_is_faster", lambda: False)
    multiply(x, weight, bias, None)
    assert onednn == []


def test_torchs_own_switch_turns_it_off(onednn, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    multiply(*inputs(ROWS), None)
    assert onednn == []


def test_compiled_transformed_and_autocast_products_are_torchs(onednn):
    x, weight, bias = inputs(ROWS)
    layer = torch.compile(lambda x: multiply(x, weight, bias, None), backend="eager", fullgraph=True)
    assert torch.equal(layer(x), F.linear(x, weight, bias))
    found = torch.func.grad(lambda x: multiply(x, weight, bias, None).sum())(x.detach())
    torch.testing.assert_close(found, weight.sum(0).expand(ROWS, WIDTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(multiply(x, weight, bias, None), F.linear(x, weight, bias))
    assert onednn == []


@pytest.mark.parametrize(("vendor", "faster"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", False)])
def test_the_vendor_of_the_cpu_decides(monkeypatch, vendor, faster):
    monkeypatch.setattr(product, "_vendor", lambda: vendor)
    assert product._is_faster.__wrapped__() is faster


def test_the_vendor_is_read_once_from_linux(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nprocessor\t: 1\nvendor_id\t: other\n")
    monkeypatch.setattr(product, "Path", lambda name: tmp_path / name.removeprefix("/proc/"))
    assert product._vendor() == "AuthenticAMD"
    (tmp_path / "cpuinfo").unlink()
    assert product._vendor() == ""


def test_the_products_of_one_image_are_large_enough():
    assert product._MIN_MULTIPLY_ADDS <= 197 * 512 * 512  # the smallest of a decoder


def test_nothing_is_multiplied_as_torch_does(onednn):
    leaves = inputs(0)
    multiply(*leaves, None).sum().backward()
    assert not leaves[1].grad.any()
    assert onednn == []
