#!/usr/bin/env bash
# pytorch-optimizer's Adan takes other steps to maximize an objective than to minimize its negative.
set -euo pipefail
exec "$(dirname "$0")/with_packages" pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from pytorch_optimizer import AdaBelief, Adan, Lion


def differences(optimizer_class, foreach):
    """Return how far two weights are apart after each of six steps: one maximizes, one minimizes the negative."""
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [optimizer_class([weights[0]], lr=0.01, maximize=True, foreach=foreach),
                  optimizer_class([weights[1]], lr=0.01, foreach=foreach)]
    found = []
    for _ in range(6):
        for weight, optimizer, sign in zip(weights, optimizers, (1, -1)):
            weight.grad = sign * torch.tensor([1.0, -2.0, 3.0])  # the same slope at every step
            optimizer.step()
        found.append((weights[0] - weights[1]).abs().max().item())
    return found


print(f"pytorch-optimizer {version('pytorch-optimizer')}, torch {torch.__version__}")
print("expected: the same weights; of a constant gradient the difference to the previous one, Adan's third term, is 0")
for optimizer_class in (AdaBelief, Lion, Adan):
    for foreach in (False, True):
        found = differences(optimizer_class, foreach)
        way = "at once" if foreach else "one by one"
        print(f"observed: {optimizer_class.__name__}, {way}: apart by {', '.join(f'{value:.4f}' for value in found)}")
        if optimizer_class is Adan:
            assert found[0] == 0 and found[-1] > 0.005, "this has changed"
        else:
            assert max(found) == 0
print("          (the first gradient is kept with the wrong sign: the second "
      "step takes twice of it for a difference)")
PYTHON
