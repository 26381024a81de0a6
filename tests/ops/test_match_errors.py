"""match_loss and match_predict say what is wrong."""

import pytest
import torch
from matching import named, sample

from bimkern.ops import match_loss, match_predict


def arguments(scale=2, **odd):
    features, target, mask, *parameters = sample("cpu", torch.float32, scale, B=2, rows=4, columns=4, D=8, P=3)
    found = {"features": features, "layers": named(scale, parameters), "target": target, "mask": mask, "scale": scale}
    return found | odd


def layers(scale=2, **odd):
    return arguments(scale)["layers"]._replace(**odd)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"scale": 3}, "scale must be one of 4, 2, 1, 0.5, got 3"),
        (
            {"layers": layers(up1_bias=None)},
            "layers at scale=2 must be up1_weight, up1_bias, pred_weight, pred_bias, got up1_bias=None",
        ),
        (
            {"layers": layers(norm_bias=torch.zeros(4))},
            "layers at scale=2 must be up1_weight, up1_bias, pred_weight, pred_bias, got norm_bias",
        ),
        ({"features": torch.zeros(2, 16)}, r"features must be \[B, N, D\], got \[2, 16\]"),
        (
            {"layers": layers(up1_weight=torch.zeros(8, 4, 3, 3))},
            r"up1_weight must be \[D=8, E, 2, 2\], got \[8, 4, 3, 3\]",
        ),
        ({"layers": layers(up1_bias=torch.zeros(5))}, r"up1_bias must be \[E=4\], got \[5\]"),
        ({"layers": layers(pred_weight=torch.zeros(3, 8, 1, 1))}, r"pred_weight must be \[P, E=4, 1, 1\], got \[3, 8"),
        ({"layers": layers(pred_bias=torch.zeros(4))}, r"pred_bias must be \[P=3\], got \[4\]"),
        ({"grid": (3, 5)}, r"grid must be \(rows, columns\) of the N=16 tokens, got \(3, 5\)"),
        ({"grid": (-4, -4)}, r"grid must be \(rows, columns\) of the N=16 tokens, got \(-4, -4\)"),
        ({"features": torch.zeros(2, 15, 8)}, "grid must be given where N is not a square, got N=15"),
        (arguments(0.5, grid=(1, 16)), r"grid must be even at scale=0.5, got \(1, 16\)"),
        (
            {"layers": layers(pred_bias=torch.zeros(3, device="meta"))},
            "pred_bias must be on cpu like features, got meta",
        ),
    ],
)
@pytest.mark.parametrize("op", [match_loss, match_predict])
def test_says_what_is_wrong(op, odd, message):
    given = arguments() | odd
    if op is match_predict:
        given = {name: given[name] for name in given if name not in ("target", "mask")}
    with pytest.raises(ValueError, match=f"^{op.__name__}: {message}"):
        op(**given)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (arguments(4, layers=layers(4, norm_weight=torch.zeros(5))), r"norm_weight must be \[E=4\], got \[5\]"),
        (arguments(4, layers=layers(4, norm_bias=torch.zeros(5))), r"norm_bias must be \[E=4\], got \[5\]"),
        (
            arguments(4, layers=layers(4, up2_weight=torch.zeros(5, 2, 2, 2))),
            r"up2_weight must be \[E=4, F, 2, 2\], got \[5, 2, 2, 2\]",
        ),
        (arguments(4, layers=layers(4, up2_bias=torch.zeros(3))), r"up2_bias must be \[F=2\], got \[3\]"),
        ({"target": torch.zeros(2, 16, 3)}, r"target must be \[B=2, M=64, P=3\], got \[2, 16, 3\]"),
        ({"mask": torch.zeros(2, 64)}, r"mask must be \[B=2, N=16\], got \[2, 64\]"),
        ({"mask": torch.zeros(2, 16, device="meta")}, "mask must be on cpu like features, got meta"),
        ({"kind": "huber"}, "kind must be one of l2, l1, got 'huber'"),
        (
            {
                "layers": layers(pred_weight=torch.zeros(0, 4, 1, 1), pred_bias=torch.zeros(0)),
                "target": torch.zeros(2, 64, 0),
            },
            r"target must hold at least one value a cell, got \[2, 64, 0\]",
        ),
        ({"denominator": -1.0}, "denominator must be at least 0, got -1.0"),
        ({"denominator": float("nan")}, "denominator must be at least 0, got nan"),
        ({"denominator": torch.ones(2)}, r"denominator must be a scalar, got shape \[2\]"),
        ({"denominator": torch.ones((), device="meta")}, "denominator must be on cpu like features, got meta"),
        (
            {"denominator": torch.ones((), requires_grad=True)},
            "denominator must not require a gradient, got requires_grad=True",
        ),
        (
            {"target": torch.zeros(2, 64, 3, requires_grad=True)},
            "target must not require a gradient, got requires_grad=True",
        ),
        ({"mask": torch.zeros(2, 16, requires_grad=True)}, "mask must not require a gradient, got requires_grad=True"),
    ],
)
def test_the_loss_says_what_is_wrong(odd, message):
    with pytest.raises(ValueError, match=f"^match_loss: {message}"):
        match_loss(**arguments() | odd)


@pytest.mark.parametrize("name", ["target", "mask"])
def test_a_constant_is_refused_after_it_passed_without_a_gradient(name):
    given = arguments()
    match_loss(**given)
    given[name].requires_grad_()
    with pytest.raises(ValueError, match=f"^match_loss: {name} must not require a gradient"):
        match_loss(**given)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"features": torch.zeros(2, 16, 8, dtype=torch.int32)}, "features must be float32, .* or float64, got int32"),
        (
            {"layers": layers(pred_weight=torch.zeros(3, 4, 1, 1).half())},
            "pred_weight must be float32 or float64, got float16",
        ),
        ({"layers": layers(up1_bias=torch.zeros(4).double())}, "up1_bias must be float32, got float64"),
        ({"dtype": torch.int8}, "dtype must be float32, float16, bfloat16 or float64, got torch.int8"),
        ({"target": torch.zeros(2, 64, 3).half()}, "target must be float32, got float16"),
        ({"mask": torch.zeros(2, 16).int()}, "mask must be bool, float32, float16, bfloat16 or float64, got int32"),
        (
            {"denominator": torch.tensor(4)},
            "denominator must be float32, float16, bfloat16 or float64, got int64",
        ),
        ({"dtype": torch.float64}, "target must be float64, got float32"),
    ],
)
def test_says_which_dtype_is_wrong(odd, message):
    with pytest.raises(TypeError, match=f"^match_loss: {message}"):
        match_loss(**arguments() | odd)
