"""Attention of bfloat16 on a CPU: torch's kernels, forward in bfloat16 and backward in float32.

torch's bfloat16 backward takes two to six times as long as its float32 one (2.13, AVX-512). What is kept between the
two passes is bfloat16 in any case; float32 copies are made of a few images at a time.

Shapes: B images, H heads, T queries, S keys, E width of a head.
"""

from typing import Any

import torch
from torch import Tensor

_HEADS = 64  # at least, of the images that are copied together: a thread takes one at a time

# Private functions of torch, which another version may lack.
_forward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def takes(q: Tensor, k: Tensor) -> bool:
    """Return whether attention is learned in bfloat16 on a CPU, there is any, and torch has kernels for it."""
    if _forward is None or _backward is None:
        return False
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    return learns and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.numel() > 0 and k.numel() > 0


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sums = _forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grads: tuple[Tensor, Tensor, Tensor] = _gradients(grad, *ctx.saved_tensors)
        return grads


# One operator, so that a trace, of any number of images, has no loop over them.
@torch.library.custom_op("bimkern::bf16_attention_backward", mutates_args=(), device_types="cpu")
def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, H = q.shape[:2]
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    images = -(-_HEADS // H)
    for start in range(0, B, images):
        rows = slice(start, start + images)
        wide = (tensor[rows].float() for tensor in (grad, q, k, v, out))
        parts = _backward(*wide, log_sums[rows], 0.0, False)
        for whole, part in zip(grads, parts, strict=True):
            whole[rows] = part
    return grads


@_gradients.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Average values [B, H, S, E] by softmax(q k^T / sqrt(E)): [B, H, T, E], where takes(q, k)."""
    result: Tensor = _Attention.apply(q, k, v)
    return result
