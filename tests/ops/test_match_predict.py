"""match_predict in kernels at scales 1 and 1/2: no worse than the reference, and an op's other promises."""

import pytest
import torch
from matching import DEFAULT, SCALES, named, predictions, sample

from bimkern.ops import backends, match_predict
from bimkern.ops.match import match_predict_reference

pytestmark = pytest.mark.skipif(backends()["match_predict"]["cpu"].backend != "native", reason="no native library")

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
GRID = (DEFAULT["rows"], DEFAULT["columns"])
MANY = {"B": 5, "rows": 6, "columns": 4, "D": 130, "P": 27}


def grid(dims):
    return dims["rows"], dims["columns"]


def with_prediction_gradients(function, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out, *torch.autograd.grad(out.square().sum(), leaves)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("features", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1, 0.5])
def test_predictions_and_their_gradients_equal_the_reference(device, scale, features, dtype):
    x, _target, _mask, *parameters = sample(device, torch.float32, scale, **MANY)
    inputs = (x.to(features), *parameters)
    grid_ = grid(MANY)

    def predict(x, *parameters):
        return match_predict(x, named(scale, parameters), scale, grid=grid_, dtype=dtype)

    def reference(x, *parameters):
        return match_predict_reference(x, named(scale, parameters), scale, *grid_, dtype)

    found, want = (with_prediction_gradients(f, inputs) for f in (predict, reference))
    bound = 4 * torch.finfo(dtype).eps * MANY["D"] ** 0.5
    for a, b in zip(found, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * b.abs().max().item())


@pytest.mark.parametrize("scale", [1, 0.5])
def test_any_strides(device, scale):
    x, _target, _mask, *parameters = sample(device, torch.float32, scale, **MANY)
    predict, _reference = predictions(scale, grid(MANY))
    found = []
    for tokens in (x, x.mT.contiguous().mT):
        leaves = [tokens.detach().requires_grad_(), *(p.clone().requires_grad_() for p in parameters)]
        out = predict(*leaves)
        grad = out.detach() if tokens is x else out.detach().mT.contiguous().mT
        found.append((out, *torch.autograd.grad(out, leaves, grad)))
    for contiguous, strided in zip(*found, strict=True):
        torch.testing.assert_close(contiguous, strided)


@pytest.mark.parametrize("scale", [1, 0.5])
def test_predictions_have_the_same_bits_from_one_thread_or_many(scale):
    dims = {"B": 16, "rows": 14, "columns": 14, "D": 256, "P": 130}
    x, _target, _mask, *parameters = sample("cpu", torch.float32, scale, **dims)
    predict, _reference = predictions(scale, (14, 14))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            leaves = [x.clone().requires_grad_(), parameters[0].clone().requires_grad_(), parameters[1]]
            out = predict(*leaves)
            found.append((out, *torch.autograd.grad(out.square().sum(), leaves[:2])))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("scale", [1, 0.5])
def test_gradients_of_gradients_of_predictions_are_refused(device, scale):
    x, _target, _mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    out = predictions(scale, GRID)[0](x.requires_grad_(), *parameters)
    with pytest.raises(RuntimeError, match=r"^match_predict: no gradients of gradients here; BIMKERN_BACKEND=ref"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


@pytest.mark.parametrize("scale", SCALES)
def test_opcheck(device, scale):
    x, _target, _mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    layers = [None if p is None else p.requires_grad_() for p in named(scale, parameters)]
    arguments = (x.requires_grad_(), layers, scale, *GRID, torch.float32)
    torch.library.opcheck(torch.ops.bimkern.match_predict, arguments)
