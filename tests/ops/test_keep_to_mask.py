import pytest
import torch

from bimkern.ops import keep_to_mask
from bimkern.ops.keep_to_mask import keep_to_mask_reference

CASES = [
    {"B": 3, "N": 196, "K": 49},
    {"B": 3, "N": 196, "K": 0},
    {"B": 3, "N": 196, "K": 196},
    {"B": 0, "N": 196, "K": 49},
    {"B": 3, "N": 0, "K": 0},
    {"B": 1, "N": 1, "K": 1},
    {"B": 131, "N": 37, "K": 5},
    {"B": 2, "N": 5000, "K": 1250},
]


def draw_keep(device, B, N, K):
    return torch.rand(B, N, device=device).argsort(dim=1)[:, :K].sort(dim=1).values


@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims):
    keep = draw_keep(device, **dims)
    mask = keep_to_mask(keep, dims["N"])
    assert mask.dtype == torch.float32
    assert torch.equal(mask, keep_to_mask_reference(keep, dims["N"]))


def test_is_one_where_masked(device):
    keep = torch.tensor([[0, 2], [1, 3]], device=device)
    expected = torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0]], device=device)
    assert torch.equal(keep_to_mask(keep, 4), expected)


def test_reads_any_strides(device):
    keep = draw_keep(device, 5, 37, 9)
    want = keep_to_mask(keep, 37)
    for view in (keep.repeat_interleave(2, dim=1)[:, ::2], keep.mT.contiguous().mT):
        assert torch.equal(keep_to_mask(view, 37), want)
    assert torch.equal(keep_to_mask(keep[:1].expand(5, -1), 37), want[:1].expand(5, -1))


def test_opcheck(device):
    torch.library.opcheck(torch.ops.bimkern.keep_to_mask, (draw_keep(device, 3, 37, 9), 37))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(device, dynamic):
    compiled = torch.compile(keep_to_mask, fullgraph=True, dynamic=dynamic)
    for B, N, K in ((3, 37, 9), (4, 50, 11)):
        keep = draw_keep(device, B, N, K)
        assert torch.equal(compiled(keep, N), keep_to_mask(keep, N))


def test_says_what_is_wrong(device):
    keep = draw_keep(device, 3, 12, 5)
    with pytest.raises(ValueError, match=r"keep_to_mask: keep must be \[B, K\], got \[5\]"):
        keep_to_mask(keep[0], 12)
    with pytest.raises(ValueError, match="keep_to_mask: keep must hold at most N=4 ids per image, got K=5"):
        keep_to_mask(keep, 4)
    with pytest.raises(TypeError, match="keep_to_mask: keep must be int64, got int32"):
        keep_to_mask(keep.int(), 12)


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
        keep_to_mask(torch.tensor(ids), 4)
    assert str(raised.value).startswith(f"keep_to_mask: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2).long(), 4), "keep must be"),
        ((torch.zeros(2, 2).int(), 4), "keep must be"),
        ((torch.zeros(2, 2).long(), -1), "num_tokens must be at least 0, got -1"),
    ],
)
def test_the_bare_op_writes_nothing_out_of_bounds(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.keep_to_mask(*arguments)
