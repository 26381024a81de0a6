"""The one tolerance of the tests: no worse than torch itself, against a float64 truth."""

import torch

FORWARD_FACTOR = 2
GRAD_FACTOR = 3


def assert_no_worse_than_torch(fn, reference, inputs, grads=(), **kwargs):
    """Hold fn's error to that of the reference in the same dtype, both measured against the reference in float64.

    Args:
        fn, reference: called as f(*inputs, **kwargs); each returns a tensor or a tuple of them.
        inputs: positional arguments; floating tensors go to float64 for the truth.
        grads: positions of the inputs whose gradients are compared too, under one random cotangent.
    """
    doubled = [x.double() if _is_floating(x) else x for x in inputs]
    outputs = [_run(f, args, grads, kwargs) for f, args in ((fn, inputs), (reference, inputs), (reference, doubled))]
    for i, (ours, torchs, truth) in enumerate(zip(*outputs, strict=True)):
        _compare(f"output {i}", ours, torchs, truth, FORWARD_FACTOR)
    if not grads:
        return
    cotangents = [torch.randn_like(out) for out in outputs[0]]
    gradients = [_gradients(out, cotangents) for out in outputs]
    for i, ours, torchs, truth in zip(grads, *gradients, strict=True):
        _compare(f"gradient of input {i}", ours, torchs, truth, GRAD_FACTOR)


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


def _compare(what, ours, torchs, truth, factor):
    assert ours.shape == torchs.shape, f"{what}: shape {list(ours.shape)}, expected {list(torchs.shape)}"
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, expected {torchs.dtype}"
    if not ours.is_floating_point():
        assert torch.equal(ours, torchs), f"{what}: integers differ"
        return
    if ours.numel() == 0:
        return
    error, allowed = (ours.double() - truth).abs().max(), (torchs.double() - truth).abs().max()
    floor = torch.finfo(ours.dtype).eps * truth.abs().max()
    assert error <= factor * allowed + floor, f"{what}: error {error:.3g}, torch's own {allowed:.3g}, floor {floor:.3g}"
