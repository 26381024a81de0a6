import pytest
import torch
from tolerance import assert_no_worse_than_torch

from bimkern.ops import gather_tokens
from bimkern.ops._check import FLOATS
from bimkern.ops.gather_tokens import gather_tokens_reference

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
    DEFAULT | {"D": 37},
    DEFAULT | {"D": 500},
    DEFAULT | {"B": 131, "N": 7, "K": 5},
    DEFAULT | {"B": 2, "N": 196, "K": 49, "D": 768},
]


def sample(device, dtype, B, R, N, K, D):
    tokens = torch.randn(B, R + N, D, device=device, dtype=dtype)
    pos = torch.randn(N, D, device=device, dtype=dtype)
    keep = torch.rand(B, N, device=device).argsort(dim=1)[:, :K].sort(dim=1).values
    return tokens, keep, pos


def run_with_grads(fn, tokens, keep, pos, num_prefix, cotangent):
    tokens, pos = tokens.detach().requires_grad_(), pos.detach().requires_grad_()
    out = fn(tokens, keep, pos, num_prefix=num_prefix)
    return out, *torch.autograd.grad(out, (tokens, pos), cotangent)


@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims):
    inputs = sample(device, torch.float32, **dims)
    assert_no_worse_than_torch(gather_tokens, gather_tokens_reference, inputs, grads=(0, 2), num_prefix=dims["R"])


@pytest.mark.parametrize("D", [32, 37])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equals_reference_in_every_dtype(device, dtype, D):
    inputs = sample(device, dtype, **DEFAULT | {"D": D})
    assert_no_worse_than_torch(gather_tokens, gather_tokens_reference, inputs, grads=(0, 2), num_prefix=1)


@pytest.mark.parametrize("dims", CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_copies_bits_without_positions(device, dtype, dims):
    tokens, keep, _ = sample(device, dtype, **dims)
    tokens.requires_grad_()
    ours = gather_tokens(tokens, keep, num_prefix=dims["R"])
    torchs = gather_tokens_reference(tokens, keep, num_prefix=dims["R"])
    assert torch.equal(ours, torchs)
    cotangent = torch.randn_like(ours)
    assert torch.equal(*(torch.autograd.grad(out, tokens, cotangent)[0] for out in (ours, torchs)))


def several(device, dtype, M, B=3, R=1, N=13, K=7, D=33):
    tokens, _, pos = sample(device, dtype, B, R, N, K, D)
    keep = torch.rand(M * B, N, device=device).argsort(dim=1)[:, :K]
    return tokens, keep, pos


# In float64 the reference is its own truth, and its order of summing would be held against ours: see gradcheck below.
@pytest.mark.parametrize("M", [2, 3, 5])
@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype != torch.float64], ids=str)
def test_masks_of_one_image_share_its_tokens(device, dtype, M):
    options = {"num_prefix": 1, "num_masks": M}
    inputs = several(device, dtype, M)
    assert_no_worse_than_torch(gather_tokens, gather_tokens_reference, inputs, grads=(0, 2), **options)


@pytest.mark.parametrize("dims", [{"K": 0}, {"R": 0, "N": 0, "K": 0}, {"B": 0}, {"D": 0}, {"K": 13, "R": 3}], ids=str)
def test_several_masks_of_odd_sizes(device, dims):
    tokens, keep, _ = several(device, torch.float64, 3, **dims)
    tokens.requires_grad_()
    num_prefix = dims.get("R", 1)
    ours = gather_tokens(tokens, keep, num_prefix=num_prefix, num_masks=3)
    torchs = gather_tokens_reference(tokens, keep, None, num_prefix, 3)
    assert torch.equal(ours, torchs)
    cotangent = torch.randn_like(ours)
    got, expected = (torch.autograd.grad(out, tokens, cotangent)[0] for out in (ours, torchs))
    torch.testing.assert_close(got, expected)


def test_gradients_of_several_masks(device):
    tokens, keep, pos = several(device, torch.float64, 3, B=2, N=5, K=3, D=2)

    def gathered(tokens, pos):
        return gather_tokens(tokens, keep, pos, num_prefix=1, num_masks=3)

    inputs = tokens.requires_grad_(), pos.requires_grad_()
    assert torch.autograd.gradcheck(gathered, inputs)
    assert torch.autograd.gradgradcheck(gathered, inputs)
    torch.library.opcheck(torch.ops.bimkern.gather_tokens, (tokens, keep, None, 1, 3))
    grad = gathered(*inputs).detach().requires_grad_()
    torch.library.opcheck(torch.ops.bimkern.gather_tokens_bwd, (grad, keep, 5, 1, 3))


def test_gradient_of_tokens_is_a_copy_with_positions(device):
    tokens, keep, pos = sample(device, torch.float32, **DEFAULT)
    cotangent = torch.randn(3, 13, 32, device=device)
    _, ours, _ = run_with_grads(gather_tokens, tokens, keep, pos, 1, cotangent)
    _, torchs, _ = run_with_grads(gather_tokens_reference, tokens, keep, pos, 1, cotangent)
    assert torch.equal(ours, torchs)


def test_adds_positions_with_one_rounding(device):
    tokens, keep, pos = sample(device, torch.bfloat16, **DEFAULT)
    exact = gather_tokens_reference(tokens.float(), keep, pos.float(), num_prefix=1)
    assert torch.equal(gather_tokens(tokens, keep, pos, num_prefix=1), exact.to(torch.bfloat16))


def test_passes_nan_and_infinity_on(device):
    for dtype in FLOATS:
        tokens, keep, pos = sample(device, dtype, **DEFAULT)
        tokens[:, :, 0], tokens[:, :, 1], tokens[:, :, 2] = torch.nan, torch.inf, -torch.inf
        ours = gather_tokens(tokens, keep, pos, num_prefix=1)
        torchs = gather_tokens_reference(tokens, keep, pos, num_prefix=1)
        torch.testing.assert_close(ours[..., :3], torchs[..., :3], equal_nan=True, rtol=0, atol=0)


def test_gradients_repeat_bit_for_bit(device):
    tokens, keep, pos = sample(device, torch.float32, B=64, R=1, N=49, K=25, D=32)
    cotangent = torch.randn(64, 26, 32, device=device)
    first = run_with_grads(gather_tokens, tokens, keep, pos, 1, cotangent)
    for _ in range(3):
        again = run_with_grads(gather_tokens, tokens, keep, pos, 1, cotangent)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def wide_rows(x):
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]


def every_other_row(x):
    return x.repeat_interleave(2, dim=-2)[..., ::2, :]


def shifted_by_one(x):
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x)


def transposed(x):
    return x.mT.contiguous().mT


def broadcast_rows(x):
    return x[..., :1, :].expand_as(x)


@pytest.mark.parametrize("view", [wide_rows, every_other_row, shifted_by_one, transposed, broadcast_rows])
def test_reads_any_strides(device, view):
    tokens, keep, pos = sample(device, torch.float32, **DEFAULT)
    tokens, pos, cotangent = view(tokens), view(pos), view(torch.randn(3, 13, 32, device=device))
    strided_keep = keep.repeat_interleave(2, dim=1)[:, ::2]
    got = run_with_grads(gather_tokens, tokens, strided_keep, pos, 1, cotangent)
    plain = (x.contiguous() for x in (tokens, keep, pos))
    want = run_with_grads(gather_tokens, *plain, 1, cotangent.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_asks_for_no_unneeded_gradient(device):
    tokens, keep, pos = sample(device, torch.float32, **DEFAULT)
    pos.requires_grad_()
    gather_tokens(tokens, keep, pos, num_prefix=1).sum().backward()
    seen = torch.zeros(3, 49, device=device).scatter_(1, keep, 1).sum(dim=0)
    assert tokens.grad is None
    assert torch.equal(pos.grad, seen[:, None].expand(49, 32))


def test_gradcheck(device):
    tokens, keep, pos = sample(device, torch.float64, B=2, R=1, N=5, K=3, D=2)
    inputs = (tokens.requires_grad_(), keep, pos.requires_grad_())
    assert torch.autograd.gradcheck(lambda *args: gather_tokens(*args, num_prefix=1), inputs)


def test_gradients_have_gradients(device):
    tokens, keep, pos = sample(device, torch.float64, B=2, R=1, N=5, K=3, D=2)
    tokens.requires_grad_()
    pos.requires_grad_()

    def squared(tokens, pos):  # its first gradient depends on both
        return gather_tokens(tokens, keep, pos, num_prefix=1).square()

    assert torch.autograd.gradgradcheck(squared, (tokens, pos))
    for wanted in (tokens, pos):
        (grad,) = torch.autograd.grad(squared(tokens, pos).sum(), wanted, create_graph=True)
        (ours,) = torch.autograd.grad(grad.sum(), wanted)
        expected = 2 * torch.autograd.grad(gather_tokens(tokens, keep, pos, num_prefix=1).sum(), wanted)[0]
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("with_pos", [True, False])
def test_opcheck(device, with_pos):
    tokens, keep, pos = sample(device, torch.float32, **DEFAULT)
    tokens.requires_grad_()
    pos.requires_grad_()
    torch.library.opcheck(torch.ops.bimkern.gather_tokens, (tokens, keep, pos if with_pos else None, 1))


@pytest.mark.parametrize("name", ["gather_tokens_bwd", "gather_tokens_bwd_pos"])
def test_opcheck_backward(device, name):
    _, keep, _ = sample(device, torch.float32, **DEFAULT)
    grad = torch.randn(3, 13, 32, device=device, requires_grad=True)
    torch.library.opcheck(getattr(torch.ops.bimkern, name), (grad, keep, 49, 1))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(device, dynamic):
    compiled = torch.compile(gather_tokens, fullgraph=True, dynamic=dynamic)
    for K in (12, 20):
        tokens, keep, pos = sample(device, torch.float32, **DEFAULT | {"K": K})
        cotangent = torch.randn(3, 1 + K, 32, device=device)
        got = run_with_grads(compiled, tokens, keep, pos, 1, cotangent)
        want = run_with_grads(gather_tokens, tokens, keep, pos, 1, cotangent)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, ValueError, "tokens must be [B, R=1+N, D], got [2, 4]"),
        ({"num_prefix": 6}, ValueError, "tokens must be [B, R=6+N, D], got [2, 5, 8]"),
        ({"keep": torch.zeros(3, 2).long()}, ValueError, "keep must be [B=2, K], got [3, 2]"),
        ({"pos": torch.zeros(3, 8)}, ValueError, "pos must be [N=4, D=8], got [3, 8]"),
        ({"keep": torch.zeros(2, 5).long()}, ValueError, "keep must hold at most N=4 ids per image, got K=5"),
        ({"num_prefix": -1}, ValueError, "num_prefix must be at least 0, got -1"),
        ({"num_masks": 0}, ValueError, "num_masks must be at least 1, got 0"),
        ({"num_masks": 2}, ValueError, "keep must be [M*B=4, K], got [2, 2]"),
        ({"keep": torch.zeros(2, 2).int()}, TypeError, "keep must be int64, got int32"),
        (
            {"tokens": torch.zeros(2, 5, 8).int()},
            TypeError,
            "tokens must be float32, float16, bfloat16 or float64, got int32",
        ),
        (
            {"pos": torch.zeros(4, 8).int()},
            TypeError,
            "pos must be float32, float16, bfloat16 or float64, got int32",
        ),
        ({"pos": torch.zeros(4, 8, device="meta")}, ValueError, "pos must be on cpu like tokens, got meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(change, error, message):
    arguments = {"tokens": torch.zeros(2, 5, 8), "keep": torch.tensor([[0, 1], [2, 3]]), "pos": torch.zeros(4, 8)}
    arguments |= {"num_prefix": 1} | change
    with pytest.raises(error) as raised:
        gather_tokens(**arguments)
    assert str(raised.value) == f"gather_tokens: {message}"


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
        gather_tokens(torch.zeros(2, 4, 8), torch.tensor(ids))
    assert str(raised.value).startswith(f"gather_tokens: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 4), torch.zeros(2, 2).long(), None, 0), "expected rows"),
        ((torch.zeros(2, 4, 8), torch.zeros(2, 2).int(), None, 0), "keep must be int64"),
        ((torch.zeros(2, 4, 8), torch.zeros(2, 5).long(), None, 0), "at most N=4 ids per image, N below .*, got K=5"),
        ((torch.zeros(2, 4, 8), torch.zeros(2, 2).long(), None, 5), "must be at least 0, got -1 and 5"),
        ((torch.zeros(2, 4, 8), torch.zeros(2, 2).long(), torch.zeros(3, 8), 0), "pos must be"),
        ((torch.zeros(2, 4, 8), torch.zeros(2, 2).long(), torch.zeros(4, 8).half(), 0), "dtype and device of the rows"),
        ((torch.zeros(2, 4, 8).int(), torch.zeros(2, 2).long(), None, 0), "dtype must be float32"),
    ],
)
def test_the_bare_op_reads_nothing_out_of_bounds(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.gather_tokens(*arguments)


def test_the_bare_backward_reads_nothing_out_of_bounds():
    with pytest.raises(RuntimeError, match=r"grad must be \[B, R\+K, D\] with R\+K=3, got 2 rows"):
        torch.ops.bimkern.gather_tokens_bwd(torch.zeros(2, 2, 8), torch.zeros(2, 2).long(), 4, 1)
    for num_masks in (0, 2):
        with pytest.raises(RuntimeError, match=rf"keep must be \[B\*M, K\] with num_masks M={num_masks}, got 3 rows"):
            torch.ops.bimkern.gather_tokens_bwd(torch.zeros(3, 2, 8), torch.zeros(3, 2).long(), 4, 0, num_masks)
