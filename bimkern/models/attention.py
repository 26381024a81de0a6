"""Attention between tokens, by name: torch's own, or that of an optional package.

The adapter for xformers follows its documented interface. Of the package itself only the refusal to run on a CPU has
been seen here; its kernels have not been run.

Shapes: B images, T tokens, H heads, E width of a head.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from bimkern import optional
from bimkern.models import bf16_attention

AttentionName = Literal["sdpa", "xformers"]
AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values and result: each [B, T, H, E]

NAMES: tuple[AttentionName, ...] = get_args(AttentionName)
_REMEDY = "it takes an NVIDIA GPU and pip install 'bimkern[xformers]'; or choose sdpa"


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Average the values of every head by softmax(q k^T / sqrt(E)), with the kernel that torch chooses.

    On a CPU, the backward pass of bfloat16 is computed in float32, which is faster.
    """
    attend = bf16_attention.attend if bf16_attention.takes(q, k) else F.scaled_dot_product_attention
    return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _xformers() -> AttentionFn:
    attention_fn: AttentionFn = optional.load("xformers.ops").memory_efficient_attention  # scales by 1 / sqrt(E) too
    return attention_fn


_OPTIONAL: dict[AttentionName, Callable[[], AttentionFn]] = {"xformers": _xformers}


def unusable(
    name: AttentionName, device: torch.device, dtype: torch.dtype, *, deterministic: bool = False
) -> str | None:
    """Return why attention of this name cannot be used here, None where it can.

    Args:
        name: a package that is not torch is imported here, and nowhere else.
        device: where it is to run.
        dtype: of queries, keys and values.
        deterministic: whether torch must repeat its results; xformers then drops some of its kernels.
    """
    if name not in _OPTIONAL:
        return None
    try:
        _try(_OPTIONAL[name](), device, dtype, deterministic)
    except optional.Unusable as reason:
        return str(reason)
    return None


def choose(
    name: AttentionName, device: torch.device, dtype: torch.dtype, *, deterministic: bool = False
) -> AttentionFn:
    """Return the attention that --attention names; arguments as for unusable.

    Raises:
        Unusable: it does not run so; the message gives the reason and the remedy.
    """
    reason = unusable(name, device, dtype, deterministic=deterministic)
    if reason is not None:
        raise optional.Unusable(f"--attention {name}: {reason}; {_REMEDY}")
    return _OPTIONAL[name]() if name in _OPTIONAL else sdpa


def _try(attention_fn: AttentionFn, device: torch.device, dtype: torch.dtype, deterministic: bool) -> None:
    """Run a few tokens forward and backward: which kernels a build has for a device shows only when they are called."""
    qkv = torch.ones(3, 1, 8, 1, 32, device=device, dtype=dtype, requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or deterministic)
    try:
        attention_fn(*qkv.unbind(0)).sum().backward()
    except Exception as error:
        reason = optional.first_line(error).rstrip(":")
        raise optional.Unusable(f"does not run on {device} in {dtype} ({reason})") from error
    finally:
        torch.use_deterministic_algorithms(before)
