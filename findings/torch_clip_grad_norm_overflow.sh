#!/usr/bin/env bash
# clip_grad_norm_ turns finite gradients whose norm overflows into zeros: the step is lost, and nothing says so.
set -euo pipefail
exec "$(dirname "$0")/with_packages" torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch

parameter = torch.nn.Parameter(torch.zeros(2))
parameter.grad = torch.tensor([3e38, 3e38])
norm = torch.nn.utils.clip_grad_norm_([parameter], max_norm=1.0)
print(f"torch {torch.__version__}")
print("expected: a gradient of norm 1 in the same direction, [0.707, 0.707], or an error")
print(f"observed: {parameter.grad.tolist()}, with a returned norm of {norm.item()}")
assert parameter.grad.tolist() == [0.0, 0.0], "this has changed"
PYTHON
