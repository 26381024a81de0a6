#!/usr/bin/env bash
# torch.func.grad refuses a custom operator for the want of a setup_context, though one is registered.
set -euo pipefail
exec "$(dirname "$0")/with_packages" torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch


@torch.library.custom_op("demo::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


double.register_autograd(lambda ctx, grad: 2 * grad, setup_context=lambda ctx, inputs, output: None)
x = torch.ones(3, requires_grad=True)
double(x).sum().backward()
try:
    observed = str(torch.func.grad(lambda x: double(x).sum())(torch.ones(3)).tolist())
except RuntimeError as error:
    observed = str(error)
print(f"torch {torch.__version__}")
print(f"expected: torch.func.grad gives what backward gives, {x.grad.tolist()}")
print(f"observed: {observed}")
assert "must override the setup_context staticmethod" in observed, "this has changed"
PYTHON
