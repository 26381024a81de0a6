"""The product by a weight: torch's, or oneDNN's where that is faster.

torch multiplies float32 matrices by MKL and bfloat16 ones by oneDNN. On AMD CPUs oneDNN is the faster one in float32
too: ViT-B's products with a weight, and those with its transpose in the backward pass, take about a seventh less. It is
chosen by the CPU's vendor, not by timing, so that equal runs on a machine have the same bits. To have MKL alone, set
torch.backends.mkldnn.enabled to False. FlopCounterMode does not count these products.

Shapes: T rows, I and O values of a row before and after.
"""

import math
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_MIN_MULTIPLY_ADDS = 2**24  # of a product that pays for a call of an autograd function
_CODE_BYTES = 16 * 2**20  # ample for the code that oneDNN makes for the shapes of a product

_made: set[Hashable] = set()  # shapes that it has made code for


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """Multiply [..., I] by a weight [O, I], or some of its rows, in a dtype, by default that of the weight."""
    dtype = dtype or weight.dtype
    # Rows that lie apart are copied in any case, and then torch adds the bias in a pass of its own.
    x, weight, bias = x.to(dtype).contiguous(), weight.to(dtype), None if bias is None else bias.to(dtype)
    if not _use_onednn(x, weight):
        return F.linear(x, weight, bias)
    product: Tensor = _OneDnnProduct.apply(x, weight, bias)
    return product


class _OneDnnProduct(torch.autograd.Function):
    """F.linear by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, len(weight))  # [T, I], [T, O]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            differentiable = torch.is_grad_enabled()
            of_x = grads @ weight if differentiable else _by_onednn(grads, weight.t(), None)
            of_x = of_x.view_as(x)
        if ctx.needs_input_grad[1]:
            of_weight = grads.t() @ rows  # in which neither library is the faster one throughout
        if ctx.needs_input_grad[2]:
            of_bias = grads.sum(0)
        return of_x, of_weight, of_bias


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shapes = x.shape, weight.shape, weight.stride(), bias is not None
    if shapes not in _made and type(x) is not FakeTensor:
        bytearray(_CODE_BYTES)  # which raises MemoryError, where oneDNN would end the process
        _made.add(shapes)
    # Private in torch, and used by its compiler; it has no gradient.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _use_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter, FakeTensor)
        and math.prod(x.shape) * len(weight) >= _MIN_MULTIPLY_ADDS
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")  # by which F.linear has another dtype
        and not torch._C._are_functorch_transforms_active()  # for which an autograd function has no rules
        and bool(torch.backends.mkldnn.enabled)
        and _is_faster()
    )


@cache
def _is_faster() -> bool:
    """Return whether this machine has oneDNN, and a CPU on which it is the faster library."""
    has = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has and _vendor() == "AuthenticAMD"


def _vendor() -> str:
    """Name the vendor of the CPU as it does itself; empty where Linux does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
