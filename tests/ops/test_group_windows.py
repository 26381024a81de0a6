"""group_windows: windows of visible tokens, packed into groups of equal size."""

import pytest
import torch

from bimkern.ops import group_windows
from bimkern.ops.group_windows import group_windows_reference, tile


def filled(*counts):
    """Keep the first tokens of one window of 7 x 7 after the other; return keep and its grid."""
    columns = 7 * len(counts)
    ids = [i // 7 * columns + 7 * w + i % 7 for w, count in enumerate(counts) for i in range(count)]
    return torch.tensor([ids]), (7, columns)


def random_units(num_masks, units, unit, num_kept):
    """Draw visible square units of tokens; return keep [num_masks, num_kept * unit**2], ascending, and the grid."""
    rows, columns = units
    shown = torch.rand(num_masks, rows * columns).argsort(dim=1).argsort(dim=1) < num_kept
    shown = shown.view(-1, rows, columns).repeat_interleave(unit, 1).repeat_interleave(unit, 2)
    ids = torch.arange(rows * columns * unit**2).view(shown.shape[1:])
    return torch.stack([ids[mask] for mask in shown]), (rows * unit, columns * unit)


def windows_of_groups(groups, mask=0):
    """List the windows of every group, each in the order of its slots."""
    windows = groups.windows[mask].tolist()
    return [list(dict.fromkeys(windows[i] for i in group if i >= 0)) for group in groups.members[mask].tolist()]


def rolled_windows(grid, window, shift):
    """Find the windows of a dense grid as Swin does: pad, roll, cut, and part what came round. [N], any names."""
    names = torch.zeros(grid, dtype=torch.int64)
    for axis, side in enumerate(grid):
        size, offset = (window, shift) if window < side else (side, 0)
        index = torch.arange((side + size - 1) // size * size)
        rolled = index.roll(-offset)
        cut = index // size * 2 + (rolled < offset)  # what came round is masked from its neighbors
        name = torch.empty_like(cut).scatter(0, rolled, cut)[:side]
        names = names * (4 * side) + (name[:, None] if axis == 0 else name)
    return names.flatten()


# units, tokens of a unit per side, units kept, window, shift
SWIN = [
    ((7, 7), 8, 12, 7, 0),
    ((7, 7), 8, 12, 7, 3),
    ((7, 7), 4, 12, 7, 3),
    ((7, 7), 2, 12, 7, 3),
    ((7, 7), 1, 12, 7, 0),  # the window is the grid
    ((7, 7), 1, 12, 7, 3),
    ((7, 7), 8, 12, 14, 7),
    ((7, 7), 8, 49, 7, 3),  # all tokens
    ((7, 7), 8, 1, 7, 3),  # one unit
    ((7, 7), 1, 1, 7, 0),
    ((6, 6), 8, 14, 6, 3),
    ((5, 9), 8, 11, 7, 3),
    ((2, 9), 2, 5, 7, 3),  # a window of 4 x 7, shifted on one side alone
    ((1, 1), 1, 1, 1, 0),
    ((13, 11), 1, 50, 5, 1),  # of no whole number of windows
]


@pytest.fixture(params=SWIN, ids=str)
def case(request):
    units, unit, num_kept, window, shift = request.param
    keep, grid = random_units(3, units, unit, num_kept)
    return keep, grid, window, shift


def raw(groups):
    return groups.members, groups.windows, groups.positions


@pytest.mark.parametrize("published", [False, True])
def test_equals_reference(case, published):
    keep, grid, window, shift = case
    sides = [(window, shift) if window < side else (side, 0) for side in grid]
    (height, down), (width, right) = sides
    wanted = group_windows_reference(keep, *grid, height, width, down, right, published)
    found = raw(group_windows(keep, grid, window, shift, published=published))
    for ours, torchs in zip(found, wanted, strict=True):
        assert ours.dtype == torchs.dtype == torch.int32
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ((49, 30, 20, 19, 10, 9), [[0], [1, 3], [2, 4, 5]]),
        ((7, 42, 14, 21, 35, 28, 6, 1), [[1], [0, 2, 3], [4, 6, 7], [5]]),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_groups_of_the_published_program(monkeypatch, backend, counts, wanted):
    monkeypatch.setenv("BIMKERN_BACKEND", backend)
    groups = group_windows(*filled(*counts), 7, published=True)
    assert groups.members.shape == (1, len(wanted), max(counts))
    assert windows_of_groups(groups) == wanted


def test_up_to_two_windows_of_tokens_are_one_published_group():
    assert group_windows(*filled(49, 49), 7, published=True).members.shape == (1, 1, 98)
    assert group_windows(*filled(49, 49, 1), 7, published=True).members.shape == (1, 3, 49)


def test_every_token_once_and_windows_in_one_piece(case):
    keep, grid, window, shift = case
    groups = group_windows(keep, grid, window, shift)
    for mask, members in enumerate(groups.members):
        kept = members[members >= 0]
        assert torch.equal(kept.sort().values, torch.arange(keep.shape[1], dtype=torch.int32))
        assert ((members >= 0).int().diff(dim=1) <= 0).all()  # padding at the end of a group
        assert ((members >= 0).any(dim=1).int().diff() <= 0).all()  # empty groups at the end of a mask
        windows = groups.windows[mask][kept.long()]
        pieces = torch.cat([windows[:1], windows[1:][windows.diff() != 0]])
        assert len(pieces.unique()) == len(pieces)
        in_window = windows[1:] == windows[:-1]
        assert (kept.diff()[in_window] > 0).all()


def test_windows_are_those_of_a_rolled_dense_grid(case):
    keep, grid, window, shift = case
    names = rolled_windows(grid, window, shift)[keep]
    windows = group_windows(keep, grid, window, shift).windows
    assert torch.equal(names[:, :, None] == names[:, None], windows[:, :, None] == windows[:, None])


def test_positions_lead_to_the_relative_position_table(case):
    keep, grid, window, shift = case
    height, width = (min(window, side) for side in grid)
    groups = group_windows(keep, grid, window, shift)
    row, column = keep // grid[1], keep % grid[1]
    for mask in range(len(keep)):
        same = groups.windows[mask][:, None] == groups.windows[mask]
        index = groups.positions[mask][:, None] - groups.positions[mask] + ((2 * height - 1) * (2 * width - 1) - 1) // 2
        down, right = row[mask][:, None] - row[mask], column[mask][:, None] - column[mask]
        assert torch.equal(index[same], ((down + height - 1) * (2 * width - 1) + right + width - 1)[same].int())


def test_padding_of_the_published_groups():
    """12 of 49 units at 56 x 56 need about 1.07 times as many slots as tokens."""
    keep, grid = random_units(200, (7, 7), 8, 12)
    slots = [
        group_windows(mask[None], grid, 7, shift, published=True).members.numel() for mask in keep for shift in (0, 3)
    ]
    assert sum(slots) / len(slots) / keep.shape[1] == pytest.approx(1.07, abs=0.02)


@pytest.mark.parametrize("window", [7, 14])
def test_the_chosen_size_costs_no_more_than_the_published(window):
    def cost(groups):
        used = (groups.members >= 0).any(dim=2).sum()
        return int(used) * tile(groups.members.shape[2]) ** 2

    keep, grid = random_units(20, (7, 7), 8, 12)
    published, chosen = (
        [
            cost(group_windows(mask[None], grid, window, shift, published=p))
            for mask in keep
            for shift in (0, window // 2)
        ]
        for p in (True, False)
    )
    assert all(ours <= theirs for ours, theirs in zip(chosen, published, strict=True))
    assert sum(chosen) < sum(published)


def test_masks_of_a_batch_are_planned_as_alone():
    keep, grid = random_units(4, (7, 7), 8, 12)
    together = group_windows(keep, grid, 7, 3)
    for mask in range(len(keep)):
        alone = group_windows(keep[mask : mask + 1], grid, 7, 3)
        assert torch.equal(alone.windows[0], together.windows[mask])
        assert torch.equal(alone.positions[0], together.positions[mask])
        assert alone.members.shape[2] == together.members.shape[2] == 64
        assert windows_of_groups(alone) == [group for group in windows_of_groups(together, mask) if group]


def test_reads_any_strides_and_any_order():
    keep, grid = random_units(3, (7, 7), 4, 12)
    wanted = raw(group_windows(keep, grid, 7, 3))
    for view in (keep.repeat_interleave(2, dim=1)[:, ::2], keep.mT.contiguous().mT):
        assert all(torch.equal(a, b) for a, b in zip(raw(group_windows(view, grid, 7, 3)), wanted, strict=True))
    shared = raw(group_windows(keep[:1].expand(3, -1), grid, 7, 3))
    assert all(torch.equal(a, a[:1].expand_as(a)) for a in shared)
    order = torch.randperm(keep.shape[1])
    shuffled = group_windows(keep[:, order], grid, 7, 3)
    assert torch.equal(shuffled.windows, wanted[1][:, order])
    assert torch.equal(shuffled.positions, wanted[2][:, order])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nothing_to_group(monkeypatch, backend, shape):
    monkeypatch.setenv("BIMKERN_BACKEND", backend)
    groups = group_windows(torch.empty(shape, dtype=torch.int64), (4, 6), 2, 1)
    assert groups.members.shape == (shape[0], 0, 0)
    assert groups.windows.shape == groups.positions.shape == shape


def test_groups_are_copied_to_a_device():
    groups = group_windows(*filled(3, 4), 7).to("meta", non_blocking=True)
    assert {tensor.device.type for tensor in raw(groups)} == {"meta"}


def test_opcheck():
    keep, _ = filled(9, 3, 4)
    torch.library.opcheck(torch.ops.bimkern.group_windows.default, (keep, 7, 21, 7, 7, 0, 3, False))


def test_compiles_without_a_graph_break():
    draw = torch.compile(group_windows, fullgraph=True, backend="eager")
    for num_kept in (3, 5):
        keep, grid = random_units(2, (3, 3), 4, num_kept)
        assert all(
            torch.equal(a, b)
            for a, b in zip(raw(draw(keep, grid, 4, 2)), raw(group_windows(keep, grid, 4, 2)), strict=True)
        )


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, (torch.zeros(4).long(), (2, 2), 2), "keep must be [S, T], got [4]"),
        (TypeError, (torch.zeros(1, 4).int(), (2, 2), 2), "keep must be int64, got int32"),
        (
            ValueError,
            (torch.zeros(1, 4, device="meta").long(), (2, 2), 2),
            "keep must be on the CPU, where groups are planned, got meta",
        ),
        (ValueError, (torch.zeros(1, 4).long(), (0, 2), 2), "grid must have 1 to 2**30 tokens, got (0, 2)"),
        (
            ValueError,
            (torch.zeros(1, 4).long(), (2**16, 2**15), 2),
            "grid must have 1 to 2**30 tokens, got (65536, 32768)",
        ),
        (
            ValueError,
            (torch.zeros(1, 5).long(), (2, 2), 2),
            "keep must hold at most 4 ids per mask, those of grid, got T=5",
        ),
        (ValueError, (torch.zeros(1, 4).long(), (2, 2), 0), "window must be at least 1, got 0"),
        (ValueError, (torch.zeros(1, 4).long(), (2, 2), 2, 2), "shift must be in [0, window=2), got 2"),
        (ValueError, (torch.zeros(1, 4).long(), (2, 2), 2, -1), "shift must be in [0, window=2), got -1"),
    ],
)
def test_says_what_is_wrong(error, arguments, message):
    with pytest.raises(error) as raised:
        group_windows(*arguments)
    assert str(raised.value) == f"group_windows: {message}"


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1], [2, 6]], "keep must hold ids in [0, N=6), got 6 in image 1"),
        ([[-1, 1], [2, 3]], "keep must hold ids in [0, N=6), got -1 in image 0"),
        ([[0, 1], [2, 2]], "keep must not repeat an id within an image, got 2 twice in image 1"),
    ],
)
def test_says_which_id_is_wrong(monkeypatch, backend, ids, message):
    monkeypatch.setenv("BIMKERN_BACKEND", backend)
    with pytest.raises(RuntimeError) as raised:
        group_windows(torch.tensor(ids), (2, 3), 2)
    assert str(raised.value).startswith(f"group_windows: {message}")


@pytest.mark.parametrize(
    ("keep", "sides", "message"),
    [
        (torch.zeros(4).long(), (2, 2, 2, 2, 0, 0), "keep must be"),
        (torch.zeros(1, 4).int(), (2, 2, 2, 2, 0, 0), "keep must be"),
        (torch.zeros(1, 5).long(), (2, 2, 2, 2, 0, 0), r"grid must have T=5 to 2\*\*30 tokens, got \(2, 2\)"),
        (torch.zeros(1, 4).long(), (2**30, 2, 2, 2, 0, 0), r"grid must have T=4 to 2\*\*30 tokens"),
        (torch.zeros(1, 4).long(), (0, 2, 0, 2, 0, 0), "rows must have 0 <= shift < window <= side, got 0, 0 and 0"),
        (torch.zeros(1, 4).long(), (2, 2, 3, 2, 0, 0), "rows must have 0 <= shift < window <= side, got 0, 3 and 2"),
        (torch.zeros(1, 4).long(), (2, 2, 2, 2, 0, 2), "columns must have 0 <= shift < window <= side, got 2, 2 and 2"),
        (torch.zeros(1, 4).long(), (2, 2, 2, 2, 0, -1), "columns must have 0 <= shift < window <= side, got -1"),
    ],
)
def test_the_bare_op_reads_nothing_out_of_bounds(keep, sides, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.group_windows(keep, *sides, False)
