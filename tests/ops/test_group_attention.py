import math

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_no_worse_than_torch
from torch.autograd import gradcheck

from bimkern.ops import WindowGroups, group_attention, group_windows
from bimkern.ops._check import FLOATS
from bimkern.ops.group_attention import group_attention_reference

# B images, S plans, a grid, windows, T visible tokens, H heads of d channels.
DEFAULT = {"B": 3, "S": 1, "grid": (9, 7), "window": 3, "shift": 1, "T": 40, "H": 2, "d": 32}
CASES = [
    DEFAULT,
    DEFAULT | {"B": 0, "S": 0},  # no plan for no image
    *(DEFAULT | odd for odd in ({"S": 3}, {"B": 0}, {"T": 0}, {"T": 1}, {"T": 63}, {"B": 1, "S": 1}, {"B": 9})),
    *(DEFAULT | odd for odd in ({"d": 1}, {"d": 8}, {"d": 13}, {"d": 37}, {"d": 128}, {"H": 1}, {"H": 5})),
    DEFAULT | {"B": 1, "T": 1, "H": 1, "d": 1},
    DEFAULT | {"S": 3, "window": 7, "shift": 0, "T": 61},  # windows of 7 x 7, and of what is left
    DEFAULT | {"grid": (5, 14), "window": 8, "shift": 4, "T": 53},  # windows of 5 x 8, shifted on one side
    DEFAULT | {"B": 2, "grid": (11, 13), "window": 14, "shift": 7, "T": 131},  # all tokens in one window
]


def sample(device, dtype=torch.float32, *, B, S, grid, window, shift, T, H, d):
    keep = torch.rand(S, grid[0] * grid[1]).argsort(dim=1)[:, :T].sort(dim=1).values
    groups = group_windows(keep, grid, window, shift).to(device)
    positions = (2 * min(window, grid[0]) - 1) * (2 * min(window, grid[1]) - 1)
    qkv = torch.randn(B, T, 3 * H * d, device=device).to(dtype)
    return qkv, torch.randn(positions, H, device=device).to(torch.promote_types(dtype, torch.float32)), groups, H


def torchs(qkv, table, groups, num_heads, scale=None):
    plan = groups.members, groups.windows, groups.positions
    scale = (qkv.shape[-1] // 3 // num_heads) ** -0.5 if scale is None else scale
    return group_attention_reference(qkv, table, *plan, num_heads, scale)


@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims):
    assert_no_worse_than_torch(group_attention, torchs, sample(device, **dims), grads=(0, 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equals_reference_in_every_dtype(device, dtype):
    qkv, table, groups, H = sample(device, dtype, **DEFAULT)
    if dtype != torch.float64:
        assert_no_worse_than_torch(group_attention, torchs, (qkv, table, groups, H), grads=(0, 1))
        return
    leaves = qkv.requires_grad_(), table.requires_grad_()
    got, want = group_attention(*leaves, groups, H), torchs(*leaves, groups, H)
    torch.testing.assert_close(got, want)
    cotangent = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent)
    )


def test_equals_dense_attention_in_full_windows(device):
    """Liu et al. 2021 (Swin), equation 4: softmax(q k^T / sqrt(d) + bias) v within each window of the grid."""
    B, H, d, window, side = 2, 3, 8, 4, 8
    groups = group_windows(torch.arange(side**2)[None], (side, side), window).to(device)
    qkv = torch.randn(B, side**2, 3 * H * d, device=device, dtype=torch.float64)
    table = torch.randn((2 * window - 1) ** 2, H, device=device, dtype=torch.float64)
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down, right = (x.flatten()[:, None] - x.flatten() + window - 1 for x in (row, column))
    bias = table[(down * (2 * window - 1) + right).to(device)].movedim(-1, 0)  # [H, n, n]

    def windows(x):
        return x.unflatten(1, (2, window, 2, window)).transpose(2, 3).flatten(1, 2).flatten(2, 3)

    q, k, v = windows(qkv).unflatten(-1, (3, H, d)).permute(3, 0, 1, 4, 2, 5)  # [B, windows, H, n, d]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(2, 3).flatten(3)
    torch.testing.assert_close(windows(group_attention(qkv, table, groups, H)), want)


@pytest.mark.parametrize("shift", [0, 3])
def test_masked_tokens_are_those_that_a_dense_softmax_leaves_out(device, shift):
    qkv, table, groups, H = sample(device, torch.float64, **DEFAULT | {"grid": (12, 10), "window": 7, "shift": shift})
    positions, windows = groups.positions[0], groups.windows[0]
    bias = table[positions[:, None] - positions + len(table) // 2].movedim(-1, 0)
    bias = bias.masked_fill(windows[:, None] != windows, -math.inf)
    q, k, v = qkv.unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, d]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    torch.testing.assert_close(group_attention(qkv, table, groups, H), want)


def test_images_with_plans_of_their_own_are_batches_of_one(device):
    qkv, table, groups, H = sample(device, **DEFAULT | {"S": 3})
    got = group_attention(qkv, table, groups, H)
    for i in range(3):
        own = WindowGroups(groups.members[i : i + 1], groups.windows[i : i + 1], groups.positions[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], group_attention(qkv[i : i + 1], table, own, H))


def test_what_pads_groups_changes_nothing(device):
    qkv, table, groups, H = sample(device, **DEFAULT)
    members = F.pad(groups.members, (0, 5, 0, 2), value=-1)  # wider groups, and two of nothing
    padded = WindowGroups(members, groups.windows, groups.positions)
    leaves = qkv.requires_grad_(), table.requires_grad_()
    got, want = (group_attention(*leaves, plan, H) for plan in (padded, groups))
    torch.testing.assert_close(got, want)
    cotangent = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent)
    )


def test_reads_strides(device):
    qkv, table, groups, H = sample(device, **DEFAULT)
    want = group_attention(qkv, table, groups, H)
    wide = torch.cat([qkv, qkv], dim=-1)[:, :, 1 : 1 + qkv.shape[-1]].roll(1, -1)
    assert torch.equal(group_attention(wide, table, groups, H), want)
    for view in (qkv.mT.contiguous().mT, qkv.transpose(0, 1).contiguous().transpose(0, 1)):
        leaf, plain = view.requires_grad_(), qkv.detach().requires_grad_()
        out = group_attention(leaf, table.T.contiguous().T, groups, H)
        assert torch.equal(out, want)
        cotangent = torch.randn(out.mT.shape, device=device).mT
        found, wanted = (torch.autograd.grad(group_attention(x, table, groups, H), x, cotangent) for x in (leaf, plain))
        assert torch.equal(*found, *wanted)


def test_large_logits_do_not_overflow(device):
    """Logits in the hundreds, of integers: rounding, which softmax would multiply by their size, is no part of them."""
    qkv, table, groups, H = sample(device, torch.float64, **DEFAULT | {"d": 16})
    qkv, table = (20 * qkv).round(), (300 * table).round()
    found = group_attention(qkv.float(), table.float(), groups, H)
    torch.testing.assert_close(found, torchs(qkv, table, groups, H).float(), rtol=1e-3, atol=1e-3)


def test_equal_values_give_no_gradient_to_logits_of_any_size(device):
    """The logsumexp of a large logit is rounded by as much as 1e-4, which all weights of a query share."""
    qkv, table, groups, H = sample(device, **DEFAULT)
    qkv[..., 2 * qkv.shape[-1] // 3 :] = 1
    leaves = qkv.requires_grad_(), (table + 3000).requires_grad_()
    grad_qkv, grad_table = torch.autograd.grad(group_attention(*leaves, groups, H).sum(), leaves)
    assert grad_qkv.chunk(3, dim=-1)[2].sum() > 1000
    assert all(x.abs().max() < 1e-3 for x in (*grad_qkv.chunk(3, dim=-1)[:2], grad_table))


def test_nan_stays_in_its_window(device):
    qkv, table, groups, H = sample(device, **DEFAULT)
    qkv[0, 7] = torch.nan
    out = group_attention(qkv, table, groups, H)
    hit = groups.windows[0] == groups.windows[0, 7]
    assert out[0, hit].isnan().all()
    assert out[0, ~hit].isfinite().all()
    assert out[1:].isfinite().all()


def test_scale_multiplies_products(device):
    qkv, table, groups, H = sample(device, torch.float64, **DEFAULT)
    torch.testing.assert_close(group_attention(qkv, table, groups, H, scale=2), torchs(qkv, table, groups, H, 2.0))
    uniform = group_attention(qkv, torch.zeros_like(table), groups, H, scale=0)
    values, windows = qkv.chunk(3, dim=-1)[2], groups.windows[0]
    torch.testing.assert_close(uniform[:, 0], values[:, windows == windows[0]].mean(1))


@pytest.mark.parametrize("S", [1, 2])
def test_gradcheck(device, S):
    dims = {"B": 2, "S": S, "grid": (4, 5), "window": 3, "shift": 1, "T": 9, "H": 2, "d": 3}
    qkv, table, groups, H = sample(device, torch.float64, **dims)
    leaves = qkv.requires_grad_(), table.requires_grad_()
    assert gradcheck(lambda qkv, table: group_attention(qkv, table, groups, H), leaves)


def test_gradients_of_gradients_are_the_references(device, monkeypatch):
    qkv, table, groups, H = sample(device, **DEFAULT)
    with pytest.raises(
        RuntimeError, match="group_attention: no gradients of gradients here; BIMKERN_BACKEND=reference"
    ):
        torch.autograd.grad(group_attention(qkv.requires_grad_(), table, groups, H).sum(), qkv, create_graph=True)
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    out = group_attention(qkv, table, groups, H)
    (grad,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    assert torch.autograd.grad(grad.sum(), qkv)[0].any()


@pytest.mark.parametrize("S", [1, 6])
def test_same_bits_for_any_number_of_threads(S):
    qkv, table, groups, H = sample("cpu", **DEFAULT | {"B": 6, "S": S, "H": 3})
    leaves = qkv.requires_grad_(), table.requires_grad_()
    cotangent = torch.randn(6, 40, 96)

    def run():
        out = group_attention(*leaves, groups, H)
        return out, *torch.autograd.grad(out, leaves, cotangent)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(run(), one, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("S", [1, 3])
def test_opcheck(device, S):
    qkv, table, groups, H = sample(device, **DEFAULT | {"S": S})
    arguments = qkv.requires_grad_(), table.requires_grad_(), groups.members, groups.windows, groups.positions, H, 0.2
    torch.library.opcheck(torch.ops.bimkern.group_attention, arguments)
    torch.library.opcheck(torch.ops.bimkern.group_attention_fwd, arguments)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    out, logsumexp = torch.ops.bimkern.group_attention_fwd(*detached)
    torch.library.opcheck(torch.ops.bimkern.group_attention_bwd, (torch.randn_like(out), logsumexp, *detached))


def test_compiles_whole(device):
    qkv, table, groups, H = sample(device, **DEFAULT)
    leaves = qkv.requires_grad_(), table.requires_grad_()
    compiled = torch.compile(lambda qkv, table: group_attention(qkv, table, groups, H), fullgraph=True)
    cotangent = torch.randn(3, 40, 64, device=device)
    found, want = (
        torch.autograd.grad(f(*leaves), leaves, cotangent)
        for f in (compiled, lambda *x: group_attention(*x, groups, H))
    )
    torch.testing.assert_close(found, want)


def test_autocast_leaves_the_arithmetic_alone(device):
    qkv, table, groups, H = sample(device, torch.bfloat16, **DEFAULT)
    want = group_attention(qkv, table, groups, H)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(group_attention(qkv, table, groups, H), want)


with torch.random.fork_rng(devices=()):
    torch.manual_seed(0)  # tests are named after its values
    GIVEN = sample("cpu", **DEFAULT)
QKV, TABLE, GROUPS, HEADS = GIVEN


def planned(**odd):
    return WindowGroups(**{name: getattr(GROUPS, name) for name in ("members", "windows", "positions")} | odd)


@pytest.mark.parametrize(
    ("odd", "error", "message"),
    [
        ({"qkv": QKV[0]}, ValueError, r"qkv must be \[B, T, C\], got \[40, 192\]"),
        (
            {"num_heads": 5},
            ValueError,
            r"qkv must be \[B, T, 3\*H\*d\] with H=5 heads of d >= 1 channels, got \[3, 40, 192\]",
        ),
        ({"num_heads": 0}, ValueError, r"qkv must be \[B, T, 3\*H\*d\] with H=0 heads"),
        ({"qkv": QKV[..., :0]}, ValueError, r"qkv must be .* d >= 1 channels, got \[3, 40, 0\]"),
        ({"table": TABLE[:, :1]}, ValueError, r"table must be \[R, H=2\], got \[25, 1\]"),
        ({"table": TABLE[1:]}, ValueError, r"table must have \(2\*h-1\)\*\(2\*w-1\) rows, got 24"),
        ({"groups": planned(members=GROUPS.members[0])}, ValueError, r"members must be \[S, G, g\], got"),
        (
            {"groups": planned(windows=GROUPS.windows[:, 1:])},
            ValueError,
            r"windows must be \[S=1, T=40\], got \[1, 39\]",
        ),
        (
            {"groups": planned(positions=GROUPS.positions[0])},
            ValueError,
            r"positions must be \[S=1, T=40\], got \[40\]",
        ),
        (
            {"groups": WindowGroups(*(x.repeat(2, *[1] * (x.ndim - 1)) for x in vars(GROUPS).values()))},
            ValueError,
            "groups must hold 1 plan or B=3, got 2",
        ),
        (
            {"groups": planned(members=torch.zeros(1, 3, 13, dtype=torch.int32))},
            ValueError,
            r"members must hold all T=40 tokens, got \[1, 3, 13\]",
        ),
        ({"qkv": QKV.int()}, TypeError, "qkv must be float32, float16, bfloat16 or float64, got int32"),
        ({"table": TABLE.bfloat16()}, TypeError, "table must be float32, got bfloat16"),
        ({"qkv": QKV.double()}, TypeError, "table must be float64, got float32"),
        ({"groups": planned(windows=GROUPS.windows.long())}, TypeError, "windows must be int32, got int64"),
        ({"table": TABLE.to("meta")}, ValueError, "table must be on cpu like qkv, got meta"),
    ],
)
def test_says_what_is_wrong(odd, error, message):
    given = {"qkv": QKV, "table": TABLE, "groups": GROUPS, "num_heads": HEADS} | odd
    with pytest.raises(error, match=f"^group_attention: {message}"):
        group_attention(**given)


def changed(name, index, value):
    tensor = getattr(GROUPS, name).clone()
    tensor[index] = value
    return planned(**{name: tensor})


FIRST = int(GROUPS.members[0, 0, 0])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (changed("members", (0, 0, 0), 40), r"members must hold ids in \[0, T=40\), got 40 in plan 0"),
        (
            changed("members", (0, 0, 0), int(GROUPS.members[0, 0, 1])),
            f"members must not repeat an id within a plan, got {int(GROUPS.members[0, 0, 1])} twice in plan 0",
        ),
        (changed("members", (0, 0, 0), -1), "members must hold all T=40 tokens, got 39 in plan 0"),
        (
            changed("positions", (0, FIRST), 13),
            r"positions must lie in \[0, 12\] of this table, got 13 in plan 0",
        ),
        (changed("positions", (0, FIRST), -1), r"positions must lie in \[0, 12\] of this table, got -1 in plan 0"),
        (
            planned(members=torch.arange(40, dtype=torch.int32)[None, None]),
            r"members of a window must be neighbors in one group, got window \d+ apart in plan 0",
        ),
    ],
)
def test_a_wrong_plan_is_found_on_a_cpu(groups, message):
    with pytest.raises(RuntimeError, match=f"group_attention: {message}"):
        group_attention(QKV, TABLE, groups, HEADS)
