import pytest
import torch
from tolerance import assert_no_worse_than_torch

from bimkern.ops import keep_to_mask, random_keep, scale_mask
from bimkern.ops._check import FLOATS
from bimkern.ops.scale_mask import scale_mask_reference

# factor -> sides of the averaged and of the repeated square
SIDES = {4: (1, 4), 2: (1, 2), 1: (1, 1), 3.0: (1, 3), 0.5: (2, 1), 1 / 3: (3, 1), 0.25: (4, 1)}
NARROW = (torch.float32, torch.float16, torch.bfloat16)  # float64 is the truth that these are measured against
CASES = [
    *((factor, (12, 24)) for factor in (4, 2, 1, 3.0, 0.5, 1 / 3, 0.25)),
    (0.5, (14, 14)),
    (2, (1, 1)),
    (2, (5, 7)),
    (2, (0, 3)),
    (0.5, (0, 0)),
]


def random_mask(device, B, N, K, dtype=torch.float32):
    ids = torch.randint(2**62, (B,), device=device)
    return keep_to_mask(random_keep(ids, N, K, seed=0), N).to(dtype)


@pytest.mark.parametrize(("factor", "grid"), CASES, ids=str)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_equals_reference(device, dtype, factor, grid):
    mask = torch.rand(3, grid[0] * grid[1], device=device, dtype=dtype)

    def reference(mask):
        return scale_mask_reference(mask, *grid, *SIDES[factor])

    assert_no_worse_than_torch(lambda mask: scale_mask(mask, factor, grid=grid), reference, (mask,), grads=(0,))


@pytest.mark.parametrize(("factor", "grid"), CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_whole_numbers_are_scaled_bit_for_bit(device, dtype, factor, grid):
    mask = torch.randint(2, (3, grid[0] * grid[1]), device=device).to(dtype) * SIDES[factor][0] ** 2
    want = scale_mask_reference(mask, *grid, *SIDES[factor])
    assert torch.equal(scale_mask(mask, factor, grid=grid), want)


def test_every_inverse_of_a_whole_number_is_a_factor(device):
    for side in range(1, 120):
        ones = torch.ones(1, side * side, device=device)
        assert scale_mask(ones, 1 / side).tolist() == [[1.0]]


def test_a_cell_weighs_the_share_of_it_that_is_masked(device):
    mask = torch.zeros(1, 14, 14, device=device)
    for cell, masked in enumerate(([], [0], [0, 3], [0, 1, 2], [0, 1, 2, 3])):
        for position in masked:
            mask[0, 2 + position // 2, 2 * cell + position % 2] = 1
    cells = scale_mask(mask.flatten(1), 1 / 2).view(7, 7)
    assert cells[1].tolist() == [0, 0.25, 0.5, 0.75, 1, 0, 0]
    assert cells.sum() == 2.5


def test_the_denominators_of_local_mim(device):
    mask = random_mask(device, 5, 196, 49)
    assert [float(scale_mask(mask, factor).sum()) for factor in (4, 2, 1, 0.5)] == [
        5 * count for count in (147 * 16, 147 * 4, 147, 36.75)
    ]


@pytest.mark.parametrize("factor", [2, 4])
def test_coarser_undoes_finer(device, factor):
    mask = random_mask(device, 4, 60, 13)
    fine = scale_mask(mask, factor, grid=(6, 10))
    assert torch.equal(scale_mask(fine, 1 / factor, grid=(6 * factor, 10 * factor)), mask)


def test_repeats_rows_and_columns(device):
    mask = torch.tensor([[1.0, 2, 3, 4, 5, 6]], device=device)
    expected = [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2
    assert scale_mask(mask, 2, grid=(2, 3)).view(4, 6).tolist() == expected


@pytest.mark.parametrize("factor", [2, 0.5])
def test_reads_any_strides(device, factor):
    mask = torch.rand(4, 36, device=device)
    want = scale_mask(mask, factor)
    for view in (mask.repeat_interleave(2, dim=1)[:, ::2], mask.mT.contiguous().mT):
        assert torch.equal(scale_mask(view, factor), want)
    assert torch.equal(scale_mask(mask[:1].expand(4, -1), factor), want[:1].expand(4, -1))


@pytest.mark.parametrize("factor", [4, 0.5])
def test_no_images(device, factor):
    assert scale_mask(torch.empty(0, 196, device=device), factor).shape == (0, 196 * factor**2)


@pytest.mark.parametrize("factor", [2, 1, 0.5])
def test_gradcheck(device, factor):
    mask = torch.rand(2, 24, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda mask: scale_mask(mask, factor, grid=(4, 6)), (mask,))
    assert torch.autograd.gradgradcheck(lambda mask: scale_mask(mask, factor, grid=(4, 6)), (mask,))


@pytest.mark.parametrize("sides", [(1, 2), (2, 1)])
def test_opcheck(device, sides):
    mask = torch.rand(2, 24, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.bimkern.scale_mask, (mask, 4, 6, *sides))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("factor", [2, 0.5])
def test_compiles_without_graph_break(device, factor, dynamic):
    compiled = torch.compile(lambda mask: scale_mask(mask, factor), fullgraph=True, dynamic=dynamic)
    for B, N in ((2, 36), (3, 64)):
        mask = random_mask(device, B, N, N // 4)
        assert torch.equal(compiled(mask), scale_mask(mask, factor))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(36), 2), ValueError, "mask must be [B, N], got [36]"),
        (
            (torch.zeros(2, 36).int(), 2),
            TypeError,
            "mask must be bool, float32, float16, bfloat16 or float64, got int32",
        ),
        ((torch.zeros(2, 35), 2), ValueError, "grid must be given where N is not a square, got N=35"),
        ((torch.zeros(2, 36), 2, (5, 7)), ValueError, "grid must be (rows, columns) of the N=36 tokens, got (5, 7)"),
        (
            (torch.zeros(2, 36), 2, (-6, -6)),
            ValueError,
            "grid must be (rows, columns) of the N=36 tokens, got (-6, -6)",
        ),
        ((torch.zeros(2, 49), 0.5), ValueError, "grid must have multiples of 2 for factor=0.5, got (7, 7)"),
        ((torch.zeros(2, 36), 0.25, (4, 9)), ValueError, "grid must have multiples of 4 for factor=0.25, got (4, 9)"),
        *(
            (
                (torch.zeros(2, 36), factor),
                ValueError,
                f"factor must be a whole number or one over a whole number, got {factor}",
            )
            for factor in (0, -2, 1.5, 0.3, float("nan"), float("inf"))
        ),
        *(
            (
                (torch.zeros(1, N), factor, grid),
                ValueError,
                f"factor must give less than 2**30 rows and columns, got {factor} for grid={grid}",
            )
            for N, factor, grid in (
                (1, 2.0**32, (1, 1)),
                (0, 2**30, (0, 0)),
                (2, 2**29, (1, 2)),
                (2, 2**29, (2, 1)),
                (1, 2**63, (1, 1)),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(arguments, error, message):
    mask, factor, *grid = arguments
    with pytest.raises(error) as raised:
        scale_mask(mask, factor, grid=grid[0] if grid else None)
    assert str(raised.value) == f"scale_mask: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(36), 6, 6, 1, 1), "mask must be"),
        ((torch.zeros(2, 36), 6, 7, 1, 1), "mask must be"),
        ((torch.zeros(2, 36), -6, -6, 1, 1), "mask must be"),
        ((torch.zeros(2, 36), 6, 6, 4, 1), "must be multiples of average"),
        ((torch.zeros(2, 36), 6, 6, 0, 1), "at least 1, got average=0"),
        ((torch.zeros(2, 36), 6, 6, 1, 0), "at least 1, got average=1, repeat=0"),
        ((torch.zeros(2, 36).int(), 6, 6, 1, 1), "dtype must be float32"),
        ((torch.zeros(1, 0), 2**32, 2**32, 1, 1), r"must be below 2\*\*30, got 4294967296, 4294967296, 1 and 1"),
        ((torch.zeros(1, 0), 2**30, 0, 1, 1), r"must be below 2\*\*30, got 1073741824, 0, 1 and 1"),
        ((torch.zeros(1, 0), 0, 0, 2**30, 1), r"must be below 2\*\*30, got 0, 0, 1073741824 and 1"),
        ((torch.zeros(1, 1), 1, 1, 1, 2**32), r"must be below 2\*\*30, got 1, 1, 1 and 4294967296"),
        ((torch.zeros(1, 2), 1, 2, 1, 2**29), r"less than 2\*\*30 rows and columns, got 536870912 and 1073741824"),
        ((torch.zeros(1, 2), 2, 1, 1, 2**29), r"less than 2\*\*30 rows and columns, got 1073741824 and 536870912"),
    ],
)
def test_the_bare_op_reads_nothing_out_of_bounds(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.scale_mask(*arguments)
