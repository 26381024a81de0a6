#!/usr/bin/env bash
# FlopCounterMode counts no operation of scaled_dot_product_attention on a CPU, where torch takes its fused kernel.
set -euo pipefail
exec "$(dirname "$0")/with_packages" torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode


def count():
    x = torch.randn(1, 2, 16, 8)
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(x, x, x)
    return counter.get_total_flops()


with sdpa_kernel(SDPBackend.MATH):
    plain = count()
fused = count()
print(f"torch {torch.__version__}")
print(f"expected: the same count for every kernel, {plain} (two products of 2 x 2 x 16 x 16 x 8)")
print(f"observed: {fused} for the kernel that a CPU takes by default, {plain} for the MATH one")
assert plain == 2 * 2 * 2 * 16 * 16 * 8, "this has changed"
assert fused == 0, "this has changed"
PYTHON
