#!/usr/bin/env bash
# The forward-mode derivative of a custom operator that has only a backward formula is zero, and nothing says so.
set -euo pipefail
exec "$(dirname "$0")/with_packages" torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch


@torch.library.custom_op("demo::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


double.register_autograd(lambda ctx, grad: 2 * grad)
x = torch.ones(3, requires_grad=True)
double(x).sum().backward()
value, tangent = torch.func.jvp(double, (torch.ones(3),), (torch.ones(3),))
print(f"torch {torch.__version__}")
print("expected: jvp gives [2, 2, 2] for 2 * x, or an error that the operator has no forward-mode formula")
print(f"observed: jvp gives {tangent.tolist()} beside the value {value.tolist()}; backward gives {x.grad.tolist()}")
assert x.grad.tolist() == [2.0, 2.0, 2.0], "this has changed"
assert tangent.tolist() == [0.0, 0.0, 0.0], "this has changed"
PYTHON
