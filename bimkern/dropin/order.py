"""Which tokens a mask keeps: drawn by the host's own random numbers, or by bimkern's counter-based ones.

Shapes: B images, N tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bimkern.ops import keep_to_mask, random_keep

Order = Callable[[Callable[[], Tensor], int, int, int, torch.device], Tensor]


def host_order(draw: Callable[[], Tensor], B: int, N: int, first: int, device: torch.device) -> Tensor:
    """Draw as the host does: the same calls in the same order, so the same seed gives the same masks."""
    return draw()


def counter_order(draw: Callable[[], Tensor], B: int, N: int, first: int, device: torch.device) -> Tensor:
    """Draw as random_keep does: the same masks on every device, ascending ids in front and behind.

    One number per image comes from torch's generator of the CPU, so torch.manual_seed decides here too.
    """
    samples = torch.randint(2**63 - 1, (B,), device="cpu").to(device, non_blocking=True)
    chosen = random_keep(samples, N, first, seed=0)  # [B, first]
    return keep_to_mask(chosen, N).argsort(dim=1, stable=True)  # [B, N]


ORDERS: dict[str, Order] = {"host": host_order, "counter": counter_order}


def inverse(order: Tensor) -> Tensor:
    """Invert permutations [B, N]: what a second argsort gives, without sorting."""
    positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions)
