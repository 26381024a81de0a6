"""Nothing is timed that does not compute the right thing."""

from typing import Any

import torch
from torch import Tensor

# Largest error over largest magnitude. These catch a wrong result; how good a right one is, tests/tolerance.py asks.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


class WrongResult(RuntimeError):
    """A provider does not compute what the reference computes; its time would mean nothing."""


def equal_up_to_rounding(provider: str, got: Any, expected: Any) -> None:
    """Hold the outputs of a provider to those of the reference; integers must be equal.

    Raises:
        WrongResult: `torch: output 1 is off by 0.13 of the largest value, allowed 1e-05`
    """
    found, wanted = tensors(got), tensors(expected)
    if len(found) != len(wanted):
        raise WrongResult(f"{provider}: {len(found)} outputs, expected {len(wanted)}")
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise WrongResult(
                f"{provider}: output {i} is {_describe(a)}, expected {_describe(b)}",
            )
        error = relative_error(a, b)
        allowed = TOLERANCE.get(a.dtype, 0.0)
        if not error <= allowed:  # also where it is NaN
            raise WrongResult(f"{provider}: output {i} is off by {error:.3g} of the largest value, allowed {allowed:g}")


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    if got.numel() == 0:
        return 0.0
    difference = (got.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def tensors(output: Any) -> tuple[Tensor, ...]:
    """Return the outputs of a provider, one or several, as a tuple."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
