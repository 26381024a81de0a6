import pytest
import torch
from tolerance import assert_no_worse_than_torch

from bimkern.ops import gather_tokens, keep_to_mask, random_keep, restore_tokens
from bimkern.ops._check import FLOATS
from bimkern.ops.restore_tokens import restore_tokens_reference

DEFAULT = {"B": 3, "R": 1, "N": 49, "K": 12, "D": 32}
CASES = [
    DEFAULT,
    DEFAULT | {"R": 0},
    DEFAULT | {"R": 3},
    DEFAULT | {"K": 0},
    DEFAULT | {"R": 0, "K": 0},
    DEFAULT | {"K": 49},
    DEFAULT | {"B": 0},
    DEFAULT | {"N": 0, "K": 0},
    DEFAULT | {"D": 0},
    DEFAULT | {"B": 1, "R": 0, "N": 1, "K": 1, "D": 1},
    DEFAULT | {"D": 1},
    DEFAULT | {"D": 33},
    DEFAULT | {"D": 500},
    DEFAULT | {"B": 131, "N": 7, "K": 5},
    DEFAULT | {"B": 37, "N": 9, "K": 4, "D": 100},
    DEFAULT | {"B": 2, "N": 196, "K": 49, "D": 512},
]


def sample(device, dtype, B, R, N, K, D):
    visible = torch.randn(B, R + K, D, device=device, dtype=dtype)
    keep = torch.rand(B, N, device=device).argsort(dim=1)[:, :K].sort(dim=1).values
    mask_token = torch.randn(D, device=device, dtype=dtype)
    return visible, keep, mask_token, torch.randn(N, D, device=device, dtype=dtype)


def sizes(dims):
    return {"num_tokens": dims["N"], "num_prefix": dims["R"]}


def run_with_grads(fn, visible, keep, mask_token, pos, cotangent, **kwargs):
    leaves = [x.detach().requires_grad_() for x in (visible, mask_token, pos)]
    out = fn(leaves[0], keep, *leaves[1:], **kwargs)
    return out, *torch.autograd.grad(out, leaves, cotangent)


# One column is not enough: the tolerance is relative to the largest of the sums, and a single one may cancel out.
@pytest.mark.parametrize("dims", [dims for dims in CASES if dims["D"] != 1], ids=str)
def test_equals_reference(device, dims):
    inputs = sample(device, torch.float32, **dims)
    assert_no_worse_than_torch(restore_tokens, restore_tokens_reference, inputs, grads=(0, 2, 3), **sizes(dims))


@pytest.mark.parametrize(("B", "D"), [(3, 32), (3, 37), (37, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_reference_in_every_dtype(device, dtype, B, D):
    dims = DEFAULT | {"B": B, "D": D}
    inputs = sample(device, dtype, **dims)
    assert_no_worse_than_torch(restore_tokens, restore_tokens_reference, inputs, grads=(0, 2, 3), **sizes(dims))


@pytest.mark.parametrize("dims", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_that_sum_exactly_are_equal(device, dtype, dims):
    inputs = sample(device, dtype, **dims)
    # Whole numbers: every order of summing them gives the same.
    cotangent = torch.randint(-99, 99, (dims["B"], dims["R"] + dims["N"], dims["D"]), device=device).to(dtype)
    ours = run_with_grads(restore_tokens, *inputs, cotangent, **sizes(dims))
    torchs = run_with_grads(restore_tokens_reference, *inputs, cotangent, **sizes(dims))
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))


@pytest.mark.parametrize("with_pos", [True, False])
@pytest.mark.parametrize("dims", CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_and_their_gradients_are_equal_bit_for_bit(device, dtype, dims, with_pos):
    visible, keep, mask_token, pos = sample(device, dtype, **dims)
    visible.requires_grad_()
    arguments = (visible, keep, mask_token, pos if with_pos else None)
    ours, torchs = restore_tokens(*arguments, **sizes(dims)), restore_tokens_reference(*arguments, **sizes(dims))
    assert torch.equal(ours, torchs)
    cotangent = torch.randn_like(ours)
    assert torch.equal(*(torch.autograd.grad(out, visible, cotangent)[0] for out in (ours, torchs)))


def test_undoes_gather(device):
    tokens = torch.randn(4, 1 + 20, 6, device=device)
    keep = random_keep(torch.arange(4, device=device), 20, 7, seed=0)
    visible = gather_tokens(tokens, keep, num_prefix=1)
    out = restore_tokens(visible, keep, torch.zeros(6, device=device), num_tokens=20, num_prefix=1)
    masked = keep_to_mask(keep, 20).bool()
    assert torch.equal(out[:, 1:][~masked], tokens[:, 1:][~masked])
    assert not out[:, 1:][masked].any()


def test_passes_nan_and_infinity_on(device):
    for dtype in FLOATS:
        visible, keep, mask_token, pos = sample(device, dtype, **DEFAULT | {"D": 70})
        for x in (visible, mask_token):
            x[..., 0], x[..., 1], x[..., 2] = torch.nan, torch.inf, -torch.inf
        ours = restore_tokens(visible, keep, mask_token, pos, num_tokens=49, num_prefix=1)
        torchs = restore_tokens_reference(visible, keep, mask_token, pos, num_tokens=49, num_prefix=1)
        torch.testing.assert_close(ours[..., :3], torchs[..., :3], equal_nan=True, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stays_with_its_token(device):
    visible, keep, mask_token, pos = sample(device, torch.float32, **DEFAULT | {"R": 0})
    cotangent = torch.randn(3, 49, 32, device=device)
    cotangent[0, keep[0, 0]] = torch.inf
    arguments = (visible, keep, mask_token, pos, cotangent)
    _, grad_visible, grad_mask_token, grad_pos = run_with_grads(restore_tokens, *arguments, num_tokens=49)
    assert grad_visible.isinf().sum() == grad_pos.isinf().sum() == 32
    assert grad_mask_token.isfinite().all()
    assert not grad_pos.isnan().any()


def test_gradients_repeat_bit_for_bit_on_any_number_of_threads(device):
    dims = {"B": 64, "R": 1, "N": 49, "K": 25, "D": 100}
    inputs, cotangent = sample(device, torch.float32, **dims), torch.randn(64, 50, 100, device=device)
    threads = torch.get_num_threads()
    first = run_with_grads(restore_tokens, *inputs, cotangent, **sizes(dims))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = run_with_grads(restore_tokens, *inputs, cotangent, **sizes(dims))
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


def wide_rows(x):
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]


def every_other_row(x):
    return x.repeat_interleave(2, dim=0)[::2]


def shifted_by_one(x):
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x)


def every_other_channel(x):
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def broadcast_rows(x):
    return x[..., :1].expand_as(x)


@pytest.mark.parametrize("view", [wide_rows, every_other_row, shifted_by_one, every_other_channel, broadcast_rows])
def test_reads_any_strides(device, view):
    visible, keep, mask_token, pos = sample(device, torch.float32, **DEFAULT)
    inputs = view(visible), keep.repeat_interleave(2, dim=1)[:, ::2], view(mask_token), view(pos)
    cotangent = view(torch.randn(3, 50, 32, device=device))
    got = run_with_grads(restore_tokens, *inputs, cotangent, **sizes(DEFAULT))
    plain = (x.contiguous() for x in (*inputs, cotangent))
    want = run_with_grads(restore_tokens, *plain, **sizes(DEFAULT))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("wanted", [(True, True, False), (False, True, True), (True, False, False)])
def test_asks_for_no_unneeded_gradient(device, wanted):
    visible, keep, mask_token, pos = sample(device, torch.float32, **DEFAULT)
    leaves = visible, mask_token, pos
    for leaf, wants in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(wants)
    restore_tokens(visible, keep, mask_token, pos, num_tokens=49, num_prefix=1).sum().backward()
    expected = [torch.ones_like(visible), torch.full_like(mask_token, 3 * 37), torch.full_like(pos, 3)]
    for leaf, wants, grad in zip(leaves, wanted, expected, strict=True):
        assert torch.equal(leaf.grad, grad) if wants else leaf.grad is None


@pytest.mark.parametrize("with_pos", [True, False])
def test_gradcheck(device, with_pos):
    visible, keep, mask_token, pos = sample(device, torch.float64, B=2, R=1, N=5, K=3, D=2)
    leaves = [x.requires_grad_() for x in ((visible, mask_token, pos) if with_pos else (visible, mask_token))]

    def restore(visible, mask_token, pos=None):
        return restore_tokens(visible, keep, mask_token, pos, num_tokens=5, num_prefix=1)

    assert torch.autograd.gradcheck(restore, leaves)
    assert torch.autograd.gradgradcheck(lambda *leaves: restore(*leaves).square(), leaves)


@pytest.mark.parametrize("wanted", range(3))
def test_each_gradient_has_its_gradient(device, wanted):
    visible, keep, mask_token, pos = sample(device, torch.float64, B=2, R=1, N=5, K=3, D=2)
    leaf = (visible, mask_token, pos)[wanted].requires_grad_()

    def second(fn):
        out = fn(visible, keep, mask_token, pos, num_tokens=5, num_prefix=1)
        (first,) = torch.autograd.grad(out.pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.sum(), leaf)[0]

    torch.testing.assert_close(second(restore_tokens), second(restore_tokens_reference))


@pytest.mark.parametrize("with_pos", [True, False])
def test_opcheck(device, with_pos):
    visible, keep, mask_token, pos = sample(device, torch.float32, **DEFAULT)
    for x in (visible, mask_token, pos):
        x.requires_grad_()
    torch.library.opcheck(
        torch.ops.bimkern.restore_tokens, (visible, keep, mask_token, pos if with_pos else None, 49, 1)
    )


@pytest.mark.parametrize("with_pos", [True, False])
def test_opcheck_backward(device, with_pos):
    _, keep, _, _ = sample(device, torch.float32, **DEFAULT)
    grad = torch.randn(3, 50, 32, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.bimkern.restore_tokens_bwd, (grad, keep, 1, with_pos))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(device, dynamic):
    compiled = torch.compile(restore_tokens, fullgraph=True, dynamic=dynamic)
    for K in (12, 20):
        inputs = sample(device, torch.float32, **DEFAULT | {"K": K})
        cotangent = torch.randn(3, 50, 32, device=device)
        got = run_with_grads(compiled, *inputs, cotangent, **sizes(DEFAULT))
        want = run_with_grads(restore_tokens, *inputs, cotangent, **sizes(DEFAULT))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"visible": torch.zeros(2, 4, 8)}, ValueError, "visible must be [B=2, R+K=3, D], got [2, 4, 8]"),
        ({"visible": torch.zeros(3, 3, 8)}, ValueError, "visible must be [B=2, R+K=3, D], got [3, 3, 8]"),
        ({"keep": torch.zeros(2).long()}, ValueError, "keep must be [B, K], got [2]"),
        ({"mask_token": torch.zeros(7)}, ValueError, "mask_token must be [D=8], got [7]"),
        ({"pos": torch.zeros(3, 8)}, ValueError, "pos must be [N=4, D=8], got [3, 8]"),
        ({"pos": None, "num_tokens": 1}, ValueError, "keep must hold at most N=1 ids per image, got K=2"),
        ({"num_prefix": -1}, ValueError, "num_tokens and num_prefix must be at least 0, got 4 and -1"),
        ({"num_tokens": -1}, ValueError, "num_tokens and num_prefix must be at least 0, got -1 and 1"),
        ({"keep": torch.zeros(2, 2).int()}, TypeError, "keep must be int64, got int32"),
        (
            {"visible": torch.zeros(2, 3, 8).int()},
            TypeError,
            "visible must be float32, float16, bfloat16 or float64, got int32",
        ),
        ({"mask_token": torch.zeros(1, 1, 7)}, ValueError, "mask_token must be [1, 1, D=8], got [1, 1, 7]"),
        ({"mask_token": torch.zeros(2, 1, 8)}, ValueError, "mask_token must be [1, 1, D=8], got [2, 1, 8]"),
        (
            {"mask_token": torch.zeros(8).int()},
            TypeError,
            "mask_token must be float32, float16, bfloat16 or float64, got int32",
        ),
        (
            {"pos": torch.zeros(4, 8).long()},
            TypeError,
            "pos must be float32, float16, bfloat16 or float64, got int64",
        ),
        (
            {"mask_token": torch.zeros(8, device="meta")},
            ValueError,
            "mask_token must be on cpu like visible, got meta",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(change, error, message):
    arguments = {"visible": torch.zeros(2, 3, 8), "keep": torch.tensor([[0, 1], [2, 3]])}
    arguments |= {"mask_token": torch.zeros(8), "pos": torch.zeros(4, 8), "num_tokens": 4, "num_prefix": 1} | change
    with pytest.raises(error) as raised:
        restore_tokens(**arguments)
    assert str(raised.value) == f"restore_tokens: {message}"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1], [2, 4]], "keep must hold ids in [0, N=4), got 4 in image 1"),
        ([[-1, 1], [2, 3]], "keep must hold ids in [0, N=4), got -1 in image 0"),
        ([[0, 1], [2, 2]], "keep must not repeat an id within an image, got 2 twice in image 1"),
    ],
)
def test_says_which_id_is_wrong_on_the_cpu(ids, message):
    with pytest.raises(RuntimeError) as raised:
        restore_tokens(torch.zeros(2, 2, 8), torch.tensor(ids), torch.zeros(8), num_tokens=4)
    assert str(raised.value).startswith(f"restore_tokens: {message}")
    with pytest.raises(RuntimeError) as raised:
        torch.ops.bimkern.restore_tokens_bwd(torch.zeros(2, 4, 8), torch.tensor(ids), 0, True)
    assert str(raised.value).startswith(f"restore_tokens_bwd: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visible": torch.zeros(2, 2)}, "expected rows"),
        ({"visible": torch.zeros(2, 3, 8)}, r"visible must be \[B, R\+K, D\] with R\+K=2, got 3 rows"),
        ({"visible": torch.zeros(2, 2, 8).int(), "mask_token": torch.zeros(8).int()}, "dtype must be float32"),
        ({"keep": torch.zeros(2, 2).int()}, "keep must be int64"),
        ({"mask_token": torch.zeros(7)}, r"mask_token must be \[D\]"),
        ({"mask_token": torch.zeros(8).half()}, "mask_token must have the dtype and device of the rows"),
        ({"pos": torch.zeros(3, 8)}, r"pos must be \[N, D\]"),
        ({"pos": torch.zeros(4, 8).half()}, "pos must have the dtype and device of the rows"),
        ({"num_tokens": -1}, "must be at least 0, got -1 and 0"),
    ],
)
def test_the_bare_op_reads_nothing_out_of_bounds(change, message):
    arguments = {"visible": torch.zeros(2, 2, 8), "keep": torch.tensor([[0, 1], [2, 3]])}
    arguments |= {"mask_token": torch.zeros(8), "pos": None, "num_tokens": 4, "num_prefix": 0} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.restore_tokens(*arguments.values())


@pytest.mark.parametrize(
    ("grad", "num_prefix", "message"),
    [(torch.zeros(2, 2), 0, "expected rows"), (torch.zeros(2, 2, 8), 3, "must be at least 0, got -1 and 3")],
)
def test_the_bare_backward_reads_nothing_out_of_bounds(grad, num_prefix, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.restore_tokens_bwd(grad, torch.zeros(2, 2).long(), num_prefix, True)
