"""Passes: what of a function is timed, forward alone or with its gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.entry import Case, Measure, Run


def forward(function: Run, leaves: Sequence[Tensor], cotangent: Tensor | None) -> Run:
    def run() -> Any:
        with torch.no_grad():
            return function()

    return run


def forward_backward(function: Run, leaves: Sequence[Tensor], cotangent: Tensor | None) -> Run:
    def run() -> Any:
        output = function()
        return output.detach(), *torch.autograd.grad(output, leaves, cotangent)

    return run


def as_it_is(function: Run, leaves: Sequence[Tensor], cotangent: Tensor | None) -> Run:
    return function


PASSES: dict[str, Callable[[Run, Sequence[Tensor], Tensor | None], Run]] = {
    "fwd": forward,
    "fwd+bwd": forward_backward,
    "step": as_it_is,  # brings its own backward
    "load": as_it_is,
    "replay": as_it_is,
}


def bind(case: Case, measure: Measure) -> tuple[dict[str, Run], Run]:
    """Return the runs of the providers in the case's pass, and that of the truth."""
    wrap = PASSES[case.pass_name]
    truth = measure.reference or measure.ours
    cotangent = torch.randn_like(truth()) if case.pass_name == "fwd+bwd" else None
    runs = {name: wrap(function, measure.leaves, cotangent) for name, function in measure.providers.items()}
    return runs, wrap(truth, measure.leaves, cotangent)
