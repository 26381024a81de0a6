#!/usr/bin/env bash
# Triton's do_not_specialize has no effect on the integers of a tuple: 1 and multiples of 16 still make other kernels.
set -euo pipefail
exec "$(dirname "$0")/with_packages" triton==3.7.1 numpy==2.4.6 <<'PYTHON'
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import create_function_from_signature


@triton.jit(do_not_specialize=["plain", "pair"])
def kernel(plain, pair):
    pass


specialize = create_function_from_signature(kernel.signature, kernel.params, CUDABackend(GPUTarget("cuda", 90, 32)))


def found(*numbers):
    """Return how an integer argument and those of a tuple enter the signature that a kernel is compiled for."""
    plain, pair = specialize(numbers[0], numbers)[1]
    return plain, pair


one, other = found(16, 1), found(17, 5)
print(f"triton {triton.__version__}")
print("expected: one signature for (16, 1) and (17, 5), since neither argument is to be specialized")
print(f"observed: plain {one[0]} and {other[0]}; tuple {one[1]} and {other[1]}")
assert one[0] == other[0], "this has changed"
assert one[1] != other[1], "this has changed"
PYTHON
