#!/usr/bin/env bash
# A weight that is unfrozen late takes a first step of 25 times lr with pytorch-optimizer's LaProp: a group counts steps.
set -euo pipefail
exec "$(dirname "$0")/with_packages" pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from pytorch_optimizer import AdaBelief, AdamP, LaProp, StableAdamW, Yogi

LR = 1e-3


def first_step(optimizer_class, before):
    """Return how far the first step of a weight is, in units of lr, if another of its group made so many before it."""
    trained, unfrozen = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = optimizer_class([trained, unfrozen], lr=LR)
    for step in range(before + 1):
        trained.grad = torch.ones(3)
        if step == before:
            unfrozen.grad = torch.ones(3)
        optimizer.step()
    return (1 - unfrozen).mean().item() / LR


print(f"pytorch-optimizer {version('pytorch-optimizer')}, torch {torch.__version__}")
print("expected: a first step as at the start of a run, about lr, as it is a weight's own averages that are corrected")
counts = {torch.optim.AdamW: False, AdaBelief: True, AdamP: True, LaProp: True, StableAdamW: True, Yogi: True}
for optimizer_class, by_group in counts.items():
    found = [first_step(optimizer_class, before) for before in (0, 10, 1000)]
    print(f"observed: {optimizer_class.__name__}, unfrozen after 0, 10, 1000 steps:", [round(step, 2) for step in found])
    assert 0.9 < found[0] < 1.2
    assert optimizer_class is not LaProp or 20 < found[2] < 30, "this has changed"
    assert (found[2] > 2 * found[0] or found[2] < found[0] / 2) == by_group, "this has changed"
PYTHON
