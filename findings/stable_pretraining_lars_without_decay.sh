#!/usr/bin/env bash
# stable-pretraining's LARS scales the rates of parameters without weight decay, which its docstring says it does not.
set -euo pipefail
exec "$(dirname "$0")/with_packages" \
  stable-pretraining==0.1.8 timm==1.0.31 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
import torch
from stable_pretraining import __version__
from stable_pretraining.optim.lars import LARS

weight = torch.nn.Parameter(torch.ones(4, 4))
weight.grad = torch.ones(4, 4)
LARS([weight], lr=0.1, weight_decay=0).step()
moved = 1 - weight.detach()[0, 0].item()
print(f"stable-pretraining {__version__}, torch {torch.__version__}")
print('expected: a step of lr times gradient, 0.1 ("set to 0 will automatically be excluded from layer-wise LR scaling")')
print(f"observed: a step of {moved:.4f}, scaled by the trust coefficient of 0.001")
assert abs(moved - 0.0001) < 1e-6, "this has changed"
PYTHON
