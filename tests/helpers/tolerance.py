"""The one tolerance of the tests: no worse than torch itself, against a float64 truth."""

from typing import NamedTuple

import numpy as np
import torch

FORWARD_FACTOR = 2
GRAD_FACTOR = 3
MORE_DRAWS = 7


def assert_no_worse_than_torch(fn, reference, inputs, grads=(), **kwargs):
    """Hold fn's error to that of the reference in the same dtype, both measured against the reference in float64.

    The largest error of a few numbers is small or large by luck. Where one cotangent leaves a doubt, several more are
    drawn, and the largest errors over all of them are compared.

    Args:
        fn, reference: called as f(*inputs, **kwargs); each returns a tensor or a tuple of them.
        inputs: positional arguments; floating tensors go to float64 for the truth.
        grads: positions of the inputs whose gradients are compared too, under random cotangents.
    """
    doubled = [x.double() if _is_floating(x) else x for x in inputs]
    calls = ((fn, inputs), (reference, inputs), (reference, doubled))

    def run():
        return [_run(f, args, grads, kwargs) for f, args in calls]

    outputs = run()
    for i, triple in enumerate(zip(*outputs, strict=True)):
        _compare(f"output {i}", _errors(*triple), FORWARD_FACTOR)
    if not grads:
        return
    errors = _gradient_errors(outputs)
    if not all(error.allowed(GRAD_FACTOR) for error in errors):
        draws = [errors, *(_gradient_errors(run()) for _ in range(MORE_DRAWS))]
        errors = [_Errors(*largest) for largest in np.max(draws, axis=0)]  # NaN is larger than any
    for i, error in zip(grads, errors, strict=True):
        _compare(f"gradient of input {i}", error, GRAD_FACTOR)


class _Outputs(tuple):
    """A function's outputs, which remember the leaves that gradients are asked for."""

    leaves: list[torch.Tensor]


def _is_floating(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _run(fn, inputs, grads, kwargs):
    args = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
    leaves = [args[i].requires_grad_() for i in grads]
    result = fn(*args, **kwargs)
    outputs = _Outputs(result if isinstance(result, tuple) else (result,))
    outputs.leaves = leaves
    return outputs


def _gradients(outputs, cotangents):
    return torch.autograd.grad(
        outputs, outputs.leaves, [c.to(o.dtype) for c, o in zip(cotangents, outputs, strict=True)]
    )


def _gradient_errors(outputs):
    cotangents = [torch.randn_like(out) for out in outputs[0]]
    gradients = [_gradients(out, cotangents) for out in outputs]
    return [_errors(*triple) for triple in zip(*gradients, strict=True)]


class _Errors(NamedTuple):
    """The largest ones against the truth, and one step of rounding of its largest value."""

    ours: float
    torchs: float
    floor: float

    def allowed(self, factor):
        return self.ours <= factor * self.torchs + self.floor


def _errors(ours, torchs, truth):
    assert ours.shape == torchs.shape, f"shape {list(ours.shape)}, expected {list(torchs.shape)}"
    assert ours.dtype == torchs.dtype, f"dtype {ours.dtype}, expected {torchs.dtype}"
    if not ours.is_floating_point():
        assert torch.equal(ours, torchs), "integers differ"
        return _Errors(0.0, 0.0, 0.0)
    if ours.numel() == 0:
        return _Errors(0.0, 0.0, 0.0)
    largest = [float((x.detach().double() - truth.detach()).abs().max()) for x in (ours, torchs)]
    return _Errors(*largest, torch.finfo(ours.dtype).eps * float(truth.detach().abs().max()))


def _compare(what, error, factor):
    assert error.allowed(factor), (
        f"{what}: error {error.ours:.3g}, torch's own {error.torchs:.3g}, floor {error.floor:.3g}"
    )
