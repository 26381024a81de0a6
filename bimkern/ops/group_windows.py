"""group_windows: which visible tokens attend to each other in a sparse Swin, in groups of equal size.

Shapes: S masks, T visible tokens, G groups, g slots of a group.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from bimkern.ops import _backend
from bimkern.ops import _check as check

MAX_TOKENS = 2**30  # of the grid: positions, less than twice as many, fit 32 bits

_backend.schemas.define(
    "group_windows(Tensor keep, int rows, int columns, int window_rows, int window_columns, int shift_rows, "
    "int shift_columns, bool published) -> (Tensor, Tensor, Tensor)"
)
_backend.declare("group_windows", kernels={"cpu": "native"}, host_only=True)


@dataclass(frozen=True)
class WindowGroups:
    """The windows of the visible tokens of S masks, and the groups that hold them; all int32.

    A token attends to those of the same window. The relative position of tokens i and j is row
    `positions[i] - positions[j] + (L - 1) // 2` of Swin's table of L = (2 * rows - 1) * (2 * columns - 1) rows, for
    the rows and columns of a window.
    """

    members: Tensor
    """[S, G, g], indices of visible tokens. Those of a window are neighbors and ascend as in keep; -1 fills the end of
    a group, and whole groups at the end of a mask with fewer of them."""
    windows: Tensor
    """[S, T], the window of every token, in raster order of the shifted windows."""
    positions: Tensor
    """[S, T], row * (2 * columns - 1) + column of every token within its window."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "WindowGroups":
        """Copy the tensors to a device, as Tensor.to does."""
        tensors = (self.members, self.windows, self.positions)
        return WindowGroups(*(tensor.to(device, non_blocking=non_blocking) for tensor in tensors))


def knapsack(sizes: Sequence[int], capacity: int) -> list[int]:
    """Return which windows fill a group best, ascending; of equally good choices that of lower indices."""
    best = [[0] * (capacity + 1)]  # [first i windows][capacity]
    for size in sizes:
        last = best[-1]
        best.append([max(last[c], last[c - size] + size) if size <= c else last[c] for c in range(capacity + 1)])
    chosen = []
    for i in reversed(range(len(sizes))):
        if best[i + 1][capacity] != best[i][capacity]:
            chosen.append(i)
            capacity -= sizes[i]
    return chosen[::-1]


def pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the windows of every group, each group the best filling of what the groups before left."""
    groups, left = [], list(range(len(sizes)))
    while left:
        chosen = [left[i] for i in knapsack([sizes[i] for i in left], capacity)]
        groups.append(chosen)
        left = [i for i in left if i not in chosen]
    return groups


def tile(size: int) -> int:
    """Return the slots that a GPU computes for a group: 16, 32 or a multiple of 64."""
    return 16 if size <= 16 else 32 if size <= 32 else (size + 63) // 64 * 64


def _candidates(sizes: Sequence[Sequence[int]], window_area: int) -> Iterator[int]:
    """Yield group sizes, the published one first."""
    num_tokens, largest = sum(sizes[0]), max(map(max, sizes))
    yield num_tokens if num_tokens <= 2 * window_area else largest
    size = tile(largest)
    while size <= tile(num_tokens):
        yield size
        size = tile(size + 1)


def _group(sizes: Sequence[Sequence[int]], window_area: int, published: bool) -> tuple[int, list[list[list[int]]]]:
    """Return the group size and the windows of every group of every mask."""
    best, cheapest = None, 0
    for size in _candidates(sizes, window_area):
        # From some size on, even groups without an empty slot cost more than the best.
        if best is not None and (published or sum(map(sum, sizes)) * size >= cheapest):
            break
        groups = [pack(mask, size) for mask in sizes]
        cost = sum(map(len, groups)) * tile(size) ** 2
        if best is None or cost < cheapest:
            best, cheapest = (size, groups), cost
    assert best is not None
    return best


def group_windows_reference(
    keep: Tensor,
    rows: int,
    columns: int,
    window_rows: int,
    window_columns: int,
    shift_rows: int,
    shift_columns: int,
    published: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # Shifted windows begin before the grid: the first of them are just smaller.
    before_row = (window_rows - shift_rows) % window_rows
    before_column = (window_columns - shift_columns) % window_columns
    row, column = keep // columns + before_row, keep % columns + before_column  # [S, T]
    windows_per_row = (columns - 1 + before_column) // window_columns + 1
    windows = row // window_rows * windows_per_row + column // window_columns
    positions = row % window_rows * (2 * window_columns - 1) + column % window_columns
    if keep.numel() == 0:
        return keep.new_empty(len(keep), 0, 0).int(), windows.int(), positions.int()

    sizes = [[count for _, count in sorted(Counter(mask).items())] for mask in windows.tolist()]
    size, groups = _group(sizes, window_rows * window_columns, published)
    members = keep.new_full((len(keep), max(map(len, groups)), size), -1)
    for mask, own in enumerate(groups):
        tokens = windows[mask].argsort(stable=True).split(sizes[mask])
        for group, chosen in enumerate(own):
            run = torch.cat([tokens[i] for i in chosen])
            members[mask, group, : len(run)] = run
    return members.int(), windows.int(), positions.int()


def group_windows(
    keep: Tensor, grid: tuple[int, int], window: int, shift: int = 0, *, published: bool = False
) -> WindowGroups:
    """Find the windows of visible tokens and put whole windows together into groups of equal size.

    Groups are filled one after the other, each as well as the windows that are left allow (a 0/1 knapsack). The group
    size is that which costs attention least: groups * tile**2, for tiles of 16, 32, 64 or a multiple of 64 slots, as
    GPUs multiply them. The paper's cost also counts the linear layers of padded slots. Here nothing but attention sees
    a padded slot, so that its width has no part in it.

    Plans on the host, several masks in parallel. The number of groups depends on the values of keep.

    Args:
        keep: [S, T], int64 on the CPU, the visible tokens in raster order of the grid, distinct within a mask. S is 1
            for a mask that a batch shares, or the number of images.
        grid: (rows, columns) of all tokens.
        window: rows and columns of a window. On a side that is not longer, the window is the whole side, not shifted.
        shift: how far the windows are shifted, in [0, window): window // 2 in every other layer of a Swin.
        published: take the group size of the published program instead of the cheapest: one group for up to
            2 * window**2 tokens, else the size of the largest window.

    Returns:
        The groups, int32 on the CPU.

    Raises:
        ValueError, TypeError: a shape, dtype, device or number is off; the message names it.
        RuntimeError: an id in keep is out of range or repeated.

    Same as: group_windows_reference.
    Source: Huang et al. 2022 (GreenMIM), section 3.2, "optimal grouping", and its published program.
    """
    numbers = check.once(_check, (keep,), *grid, window, shift)
    arguments = (*numbers, published)
    ids = ("keep", keep, grid[0] * grid[1])
    return WindowGroups(*_backend.call("group_windows", group_windows_reference, keep, *arguments, ids=ids))


def _check(keep: Tensor, rows: int, columns: int, window: int, shift: int) -> tuple[int, int, int, int, int, int]:
    """Check what group_windows takes and return rows and columns of grid, window and shift."""
    op = "group_windows"
    dims = check.shapes(op, keep=(keep, "S T"))
    check.dtypes(op, keep=(keep, torch.int64))
    if keep.device.type != "cpu":
        raise ValueError(f"{op}: keep must be on the CPU, where groups are planned, got {keep.device}")
    if rows < 1 or columns < 1 or rows * columns > MAX_TOKENS:
        raise ValueError(f"{op}: grid must have 1 to 2**30 tokens, got ({rows}, {columns})")
    if dims["T"] > rows * columns:
        raise ValueError(
            f"{op}: keep must hold at most {rows * columns} ids per mask, those of grid, got T={dims['T']}"
        )
    if window < 1:
        raise ValueError(f"{op}: window must be at least 1, got {window}")
    if not 0 <= shift < window:
        raise ValueError(f"{op}: shift must be in [0, window={window}), got {shift}")
    sides = [(window, shift) if window < side else (side, 0) for side in (rows, columns)]
    return rows, columns, sides[0][0], sides[1][0], sides[0][1], sides[1][1]


@torch.library.register_fake("bimkern::group_windows", lib=_backend.schemas)
def _(keep: Tensor, *_: int) -> tuple[Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    groups: int | torch.SymInt
    size: int | torch.SymInt
    try:
        groups, size = context.new_dynamic_size(), context.new_dynamic_size()
    except DynamicOutputShapeException:  # sizes must be numbers, as where memory is estimated: one group for all
        groups, size = 1, keep.shape[1]
    tokens = keep.new_empty(keep.shape, dtype=torch.int32)
    return tokens.new_empty(keep.shape[0], groups, size), tokens, torch.empty_like(tokens)
