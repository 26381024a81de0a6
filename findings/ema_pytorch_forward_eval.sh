#!/usr/bin/env bash
# ema-pytorch's forward_eval leaves its model in training mode: dropout acts, and BatchNorm takes in test images.
set -euo pipefail
exec "$(dirname "$0")/with_packages" ema-pytorch==0.8.3 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from ema_pytorch import EMA

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
average = EMA(model, update_after_step=0, update_every=1)
average.update()  # in a training loop: the model is in training mode, and so is its copy
images = torch.randn(8, 4)
statistics = average.ema_model[1].running_mean.clone()
once, twice = average.forward_eval(images), average.forward_eval(images)
moved = (average.ema_model[1].running_mean - statistics).abs().max()
average.ema_model.eval()
by_hand = average.ema_model(images)
print(f"ema-pytorch {version('ema-pytorch')}, torch {torch.__version__}")
print('expected: the output of the model in eval mode, twice the same ("no grad + eval", its source says)')
print(f"observed: two calls differ by up to {(once - twice).abs().max():.2f}; neither is what eval mode gives")
print(f"          {(once == 0).float().mean():.0%} of the features are dropped; means of BatchNorm moved by {moved:.2f}")
assert torch.equal(average.ema_model(images), by_hand)
assert not torch.equal(once, twice) and not torch.equal(once, by_hand), "this has changed"
assert (once == 0).any() and moved > 0, "this has changed"
PYTHON
