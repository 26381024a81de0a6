#!/usr/bin/env bash
# torch.optim.Muon without Nesterov's momentum scales its momentum buffers to a norm of 1, if weights are bfloat16.
set -euo pipefail
exec "$(dirname "$0")/with_packages" torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch


def last_buffer(dtype):
    """Return the norm of a weight's momentum buffer after ten steps with a gradient of ones."""
    weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    optimizer = torch.optim.Muon([weight], lr=0.01, momentum=0.9, nesterov=False)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return optimizer.state[weight]["momentum_buffer"].float().norm().item()


expected = (1 - 0.9**10) * 64  # an average of gradients of norm 64, which begins at zero
single, half = last_buffer(torch.float32), last_buffer(torch.bfloat16)
print(f"torch {torch.__version__}")
print(f"expected: a buffer of norm {expected:.1f} in either precision, an average of the gradients")
print(f"observed: {single:.1f} in float32 and {half:.1f} in bfloat16: the next gradient outweighs all before")
assert abs(single - expected) < 0.1
assert abs(half - 1) < 0.05, "this has changed"
PYTHON
