"""Compute a part of a loss and its gradients at once, so that its activations are gone before those of the next part.

A sum of losses, each of which runs through layers of its own, otherwise keeps the activations of all until backward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.dropin.layers import has_hooks


def loss_at_once(layers: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return loss(x), a scalar; where possible its gradients in x and in the parameters of `layers` are taken at once.

    Args:
        layers: all that the loss runs through.
        loss: of x alone.
        x: of any shape.

    Raises:
        RuntimeError: backward is called with create_graph; gradients that are taken at once have no derivative.

    Gradients wait for backward as usual where something listens to layers or their gradients, in float16, whose small
    gradients need the scale that backward brings, and under a compiler.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _is_observed(layers) or _is_half(x):
        return loss(x)
    result: Tensor = _AtOnce.apply(loss, x, *(p for p in layers.parameters() if p.requires_grad))
    return result


def _is_observed(layers: nn.Module) -> bool:
    return any(map(has_hooks, layers.modules())) or any(p._backward_hooks for p in layers.parameters())


def _is_half(x: Tensor) -> bool:
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return torch.float16 in (dtype, x.dtype)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
        x = x.detach().requires_grad_(x.requires_grad)
        leaves = [leaf for leaf in (x, *parameters) if leaf.requires_grad]
        with torch.enable_grad():
            result = loss(x)
        grads = torch.autograd.grad(result, leaves, allow_unused=True) if leaves else ()
        ctx.has_x = x.requires_grad
        ctx.save_for_backward(*grads)
        return result.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable would let it pass where grad is a constant
            raise RuntimeError(
                "loss_at_once: gradients must be taken without create_graph, for the loss came with constant ones, "
                "got create_graph=True: undo() the patch of this model first"
            )
        grads = [None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors]
        return None, *([] if ctx.has_x else [None]), *grads
