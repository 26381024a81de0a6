#!/usr/bin/env bash
# FlopCounterMode counts the weight gradient of a grouped convolution as if it had one group.
set -euo pipefail
exec "$(dirname "$0")/with_packages" torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode


def count(groups):
    """Return the operations of a forward pass and of its backward pass to input and weight."""
    conv = torch.nn.Conv2d(16, 16, 3, groups=groups, bias=False)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = conv(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


counts = {groups: count(groups) for groups in (1, 4, 16)}
print(f"torch {torch.__version__}")
print("expected: backward counts twice what forward does, once for each gradient, whatever the groups are")
print(f"observed: {', '.join(f'{g} groups: {b / f:g} times' for g, (f, b) in counts.items())}")
assert counts[1][1] == 2 * counts[1][0], "this has changed"
assert counts[4][1] == 5 * counts[4][0] and counts[16][1] == 17 * counts[16][0], "this has changed"
PYTHON
