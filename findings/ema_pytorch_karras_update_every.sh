#!/usr/bin/env bash
# ema-pytorch's post-hoc EMAs are made of a run's first weights: updated every 100 steps, they decay as if each step.
set -euo pipefail
exec "$(dirname "$0")/with_packages" ema-pytorch==0.8.3 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from ema_pytorch import KarrasEMA

STEPS = 2000


def profile(sigma_rel, **options):
    """Return the mean and the standard deviation of the steps that an average is made of, in parts of the run."""
    model = torch.nn.Linear(STEPS, 1, bias=False).requires_grad_(False)
    average = KarrasEMA(model, sigma_rel=sigma_rel, **options)
    for step in range(STEPS):
        model.weight.zero_()
        model.weight[0, step] = 1  # the weights of this step, so that the average shows how much of each it holds
        average.update()
    weights, steps = average.ema_model.weight[0].double(), torch.arange(STEPS).double() / STEPS
    assert abs(weights.sum() - 1) < 1e-4
    mean = weights @ steps
    return mean.item(), (weights @ (steps - mean) ** 2).sqrt().item()


print(f"ema-pytorch {version('ema-pytorch')}, torch {torch.__version__}")
print("expected: steps with a standard deviation of sigma_rel (Karras et al. 2024); update_every only says \"how often to")
print("          actually update, to save on compute\"")
choices = {"1": {"update_every": 1}, "10, as in the README": {"update_every": 10}, "100, the default": {}}
for sigma_rel, center in ((0.05, 0.947), (0.28, 0.539)):
    for name, options in choices.items():
        mean, deviation = profile(sigma_rel, **options)
        print(f"observed: sigma_rel {sigma_rel}, update_every {name}: at {mean:.0%} of the run, +- {deviation:.3f}")
        as_wished = abs(mean - center) < 0.01 and abs(deviation - sigma_rel) < 0.01
        assert as_wished == (name == "1"), "this has changed"
        assert as_wished or mean < 0.7, "this has changed"
PYTHON
