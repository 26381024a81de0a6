"""How far the arena's plan of a step that no recipe has is above the largest sum of its live bytes.

    python -m bench.arena_mlp

A step of a two-layer MLP with AdamW in one scope: few allocations, of sizes far apart. A batch that
lives until the next one is made has two slots, one for the old and one for the new.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from bimkern.arena import Arena, Plan

Kept = Literal["nothing", "batch", "gradients"]  # what lives into the next step
SHAPES = ((16, 32, 64, 32), (32, 64, 256, 64), (64, 784, 512, 10), (128, 256, 1024, 256), (256, 784, 256, 10))
_STEPS = 3  # the first makes the optimizer's state, the second is recorded


def plan(shape: Sequence[int], kept: Kept, *, fused: bool) -> Plan:
    """Plan a step of an MLP of shape (batch, input, hidden, output)."""
    batch, width, hidden, outputs = shape
    model = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, outputs))
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    images, truth = torch.rand(batch, width), torch.rand(batch, outputs)
    arena = Arena()
    for _ in range(_STEPS):
        with arena.scope("step"):
            if kept == "batch":
                images, truth = torch.rand(batch, width), torch.rand(batch, outputs)
            elif kept == "gradients":
                optimizer.zero_grad()
            loss = (model(images) - truth).square().mean()
            loss.backward()
            optimizer.step()
            if kept != "gradients":
                optimizer.zero_grad()
            del loss
    return arena.plan()


def main() -> None:
    print("peak of the plan above the largest sum of live bytes; kept into the next step:")
    print(f"{'batch, input, hidden, output':30}{'AdamW':8}" + "".join(f"{kept:>12}" for kept in get_args(Kept)))
    for shape in SHAPES:
        for fused in (False, True):
            gaps = (plan(shape, kept, fused=fused).gap for kept in get_args(Kept))
            name = "fused" if fused else "plain"
            print(f"{', '.join(map(str, shape)):30}{name:8}" + "".join(f"{gap:>12.1%}" for gap in gaps))


if __name__ == "__main__":
    main()
