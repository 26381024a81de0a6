import pytest
import torch
from tolerance import assert_no_worse_than_torch
from torch.autograd import gradcheck, gradgradcheck

from bimkern.ops import masked_loss
from bimkern.ops._check import FLOATS
from bimkern.ops.masked_loss import KINDS, masked_loss_reference

DEFAULT = {"B": 3, "N": 49, "P": 96}
CASES = [
    DEFAULT,
    *(DEFAULT | odd for odd in ({"B": 0}, {"N": 0}, {"B": 1, "N": 1, "P": 1}, {"P": 1}, {"P": 27}, {"P": 65})),
    *(DEFAULT | odd for odd in ({"P": 768}, {"P": 3072}, {"B": 1, "N": 9001, "P": 7})),
]


def sample(device, dtype=torch.float32, target=torch.float32, *, B, N, P):
    """Return pred, target and weights in {0, 0.25, ..., 1}, of which some are 1 and some 0."""
    weight = torch.randint(0, 5, (B, N), device=device) / 4
    weight[:, ::3] = 1
    pred, truth = torch.randn(B, N, P, device=device).to(dtype), torch.randn(B, N, P, device=device).to(target)
    return pred, truth, weight.to(torch.promote_types(target, torch.float32))


def torchs(pred, target, weight, kind="l2"):
    return masked_loss_reference(pred, target, weight, weight.sum(), kind == "l1")


def with_grad(fn, pred, *rest):
    leaf = pred.detach().requires_grad_()
    loss = fn(leaf, *rest)
    return loss, *torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims, kind):
    assert_no_worse_than_torch(masked_loss, torchs, (*sample(device, **dims), kind), grads=(0,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equals_reference_in_every_dtype(device, dtype, target, kind):
    pred, truth, weight = sample(device, dtype, target, **DEFAULT)
    if target == torch.float64:  # the reference is the truth itself
        got, want = (with_grad(fn, pred, truth, weight, kind) for fn in (masked_loss, torchs))
        torch.testing.assert_close(got, want)
    else:
        assert_no_worse_than_torch(masked_loss, torchs, (pred, truth, weight, kind), grads=(0,))


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_mean_over_masked_tokens(device, kind):
    pred, target, weight = sample(device, torch.float64, torch.float64, **DEFAULT)
    weight = (weight == 1).double()
    difference = (pred - target)[weight.bool()]
    expected = difference.square().mean() if kind == "l2" else difference.abs().mean()
    torch.testing.assert_close(masked_loss(pred, target, weight, kind), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(device, kind):
    pred, target, weight = sample(device, torch.float64, torch.float64, B=2, N=5, P=6)
    pred.requires_grad_()
    assert gradcheck(lambda pred: masked_loss(pred, target, weight, kind), (pred,))
    assert gradgradcheck(lambda pred: masked_loss(pred, target, weight, kind).square(), (pred,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("target", [False, True], ids=["pred", "target"])
@pytest.mark.parametrize("fn", [masked_loss, torchs], ids=["ours", "torchs"])
def test_rows_of_weight_zero_are_not_read(device, fn, target, bad):
    pred, truth, weight = sample(device, **DEFAULT)
    changed = [pred.clone(), truth.clone()]
    changed[target][weight == 0] = bad
    want, got = with_grad(fn, pred, truth, weight), with_grad(fn, *changed, weight)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not got[1][weight == 0].any()


def test_nan_in_a_row_that_counts_comes_through(device):
    pred, target, weight = sample(device, **DEFAULT)
    pred[0, 0, 5] = torch.nan
    assert masked_loss(pred, target, weight).isnan()


def test_parts_with_the_whole_denominator_add_up(device):
    pred, target, weight = sample(device, torch.float64, torch.float64, **DEFAULT)
    total = weight.sum()
    parts = [masked_loss(pred[i : i + 1], target[i : i + 1], weight[i : i + 1], denominator=total) for i in range(3)]
    torch.testing.assert_close(sum(parts), masked_loss(pred, target, weight))


@pytest.mark.parametrize("denominator", [7.0, 7, torch.tensor(7.0), torch.tensor(7.0, dtype=torch.float64)], ids=repr)
def test_takes_a_number_or_a_scalar_tensor(device, denominator):
    pred, target, weight = sample(device, **DEFAULT)
    given = denominator.to(device) if isinstance(denominator, torch.Tensor) else denominator
    want = masked_loss_reference(pred, target, weight, torch.tensor(7.0, device=device), False)
    torch.testing.assert_close(masked_loss(pred, target, weight, denominator=given), want)


@pytest.mark.parametrize("fn", [masked_loss, torchs], ids=["ours", "torchs"])
def test_all_zero_weight_gives_zero_and_zero_gradients(device, fn):
    pred, target, weight = sample(device, **DEFAULT)
    loss = fn(pred.requires_grad_(), target, torch.zeros_like(weight))
    loss.backward()
    assert loss == 0
    assert not pred.grad.any()


def test_a_denominator_of_zero_gives_zero_and_zero_gradients(device):
    pred, target, weight = sample(device, **DEFAULT)
    loss = masked_loss(pred.requires_grad_(), target, weight, denominator=0)
    loss.backward()
    assert loss == 0
    assert not pred.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_half_predictions_get_half_gradients_from_a_float32_loss(device, kind):
    pred, target, weight = sample(device, torch.bfloat16, **DEFAULT)
    loss = masked_loss(pred.requires_grad_(), target, weight, kind)
    loss.backward()
    assert loss.dtype == torch.float32
    assert pred.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    pred, target, weight = sample("cpu", dtype, B=8, N=196, P=192)
    weight = torch.rand_like(weight)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(with_grad(masked_loss, pred, target, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_same_bits_in_every_run(device):
    pred, target, weight = sample(device, B=8, N=196, P=192)
    first, *others = (masked_loss(pred, target, weight) for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


def test_reads_any_strides(device):
    pred, target, weight = sample(device, **DEFAULT)
    want = with_grad(masked_loss, pred, target, weight)
    wide = [torch.cat([x, x], dim=-1)[..., :96] for x in (pred, target)]
    late = [torch.cat([x[:, :1], x], dim=1)[:, 1:] for x in (pred, target)]
    turned = [x.mT.contiguous().mT for x in (pred, target)]
    strided = weight.T.contiguous().T
    for a, b in (wide, late, turned):
        assert all(torch.equal(x, y) for x, y in zip(with_grad(masked_loss, a, b, strided), want, strict=True))
    row = target[:1, :1]
    want = with_grad(masked_loss, pred, row.expand_as(pred).contiguous(), weight)
    assert all(
        torch.equal(x, y) for x, y in zip(with_grad(masked_loss, pred, row.expand_as(pred), weight), want, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, dtype, kind):
    pred, target, weight = sample(device, dtype, **DEFAULT)
    args = (pred.requires_grad_(), target, weight, weight.sum(), kind == "l1")
    torch.library.opcheck(torch.ops.bimkern.masked_loss, args)
    grad = torch.tensor(2.0, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.bimkern.masked_loss_bwd, (grad, *args))


@pytest.mark.parametrize("denominator", [None, 5.0])
def test_compiles_whole(device, denominator):
    pred, target, weight = sample(device, **DEFAULT)
    leaf = pred.requires_grad_()
    compiled = torch.compile(masked_loss, fullgraph=True)
    got, want = (fn(leaf, target, weight, denominator=denominator) for fn in (compiled, masked_loss))
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(loss, leaf)[0] for loss in (got, want)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_makes_nothing_of_the_size_of_pred_but_its_gradient(device, dtype):
    from bench.memory import extra_bytes

    pred, target, weight = sample(device, dtype, B=4, N=196, P=768)
    pred.requires_grad_()
    total = weight.sum()

    def both():
        return torch.autograd.grad(masked_loss(pred, target, weight, denominator=total), pred)

    few = 64 * weight.numel()
    with torch.no_grad():
        assert extra_bytes(lambda: masked_loss(pred, target, weight, denominator=total), device) < few
    assert extra_bytes(both, device) < pred.nbytes + few


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.zeros(3, 9, 6)}, ValueError, "target must be [B=4, N=9, P=6], got [3, 9, 6]"),
        ({"weight": torch.zeros(4, 8)}, ValueError, "weight must be [B=4, N=9], got [4, 8]"),
        (
            {"pred": torch.zeros(4, 9, 0), "target": torch.zeros(4, 9, 0)},
            ValueError,
            "pred must hold at least one value a token, got [4, 9, 0]",
        ),
        (
            {"pred": torch.zeros(4, 9, 6).int()},
            TypeError,
            "pred must be float32, float16, bfloat16 or float64, got int32",
        ),
        (
            {"target": torch.zeros(4, 9, 6).byte()},
            TypeError,
            "target must be float32, float16, bfloat16 or float64, got uint8",
        ),
        (
            {"weight": torch.zeros(4, 9).int()},
            TypeError,
            "weight must be bool, float32, float16, bfloat16 or float64, got int32",
        ),
        ({"target": torch.zeros(4, 9, 6, device="meta")}, ValueError, "target must be on cpu like pred, got meta"),
        (
            {"target": torch.zeros(4, 9, 6, requires_grad=True)},
            ValueError,
            "target must not require a gradient, got requires_grad=True",
        ),
        (
            {"weight": torch.zeros(4, 9, requires_grad=True)},
            ValueError,
            "weight must not require a gradient, got requires_grad=True",
        ),
        ({"kind": "huber"}, ValueError, "kind must be one of l2, l1, got 'huber'"),
        ({"denominator": -1.0}, ValueError, "denominator must be at least 0, got -1.0"),
        ({"denominator": float("nan")}, ValueError, "denominator must be at least 0, got nan"),
        ({"denominator": torch.ones(4)}, ValueError, "denominator must be a scalar, got shape [4]"),
        (
            {"denominator": torch.tensor(4)},
            TypeError,
            "denominator must be float32, float16, bfloat16 or float64, got int64",
        ),
        (
            {"denominator": torch.ones((), device="meta")},
            ValueError,
            "denominator must be on cpu like pred, got meta",
        ),
        (
            {"denominator": torch.ones((), requires_grad=True)},
            ValueError,
            "denominator must not require a gradient, got requires_grad=True",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(change, error, message):
    arguments = {"pred": torch.zeros(4, 9, 6), "target": torch.zeros(4, 9, 6), "weight": torch.zeros(4, 9)}
    with pytest.raises(error) as raised:
        masked_loss(**arguments | change)
    assert str(raised.value) == f"masked_loss: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": torch.zeros(4, 9)}, r"pred must be \[B, N, P\] and weight \[B, N\]"),
        ({"weight": torch.zeros(4, 8)}, r"pred must be \[B, N, P\] and weight \[B, N\]"),
        ({"pred": torch.zeros(4, 9, 6).int()}, "dtype must be float32"),
        ({"target": torch.zeros(4, 9, 5)}, "target must have the shape and device of pred"),
        ({"target": torch.zeros(4, 9, 6).int()}, "dtype must be float32"),
        ({"weight": torch.zeros(4, 9).half()}, "weight must be float32 or float64"),
        ({"denominator": torch.ones(1)}, "denominator must be a scalar of the dtype of weight"),
        ({"denominator": torch.ones(()).double()}, "denominator must be a scalar of the dtype of weight"),
        ({"grad": torch.ones(2)}, "grad must be a scalar of the dtype of weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bare_ops_read_nothing_out_of_bounds(change, message):
    arguments = {"pred": torch.zeros(4, 9, 6), "target": torch.zeros(4, 9, 6), "weight": torch.zeros(4, 9)}
    arguments |= {"denominator": torch.ones(()), "absolute": False} | change
    grad = arguments.pop("grad", torch.ones(()))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.masked_loss_bwd(grad, **arguments)
    if "grad" not in change:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.bimkern.masked_loss(**arguments)
