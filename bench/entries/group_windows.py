"""group_windows against the published program, which groups in Python."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import shapes
from bench.eager.swin_block import Grouping, group
from bench.entry import Case, Measure, entry
from bench.refcheck import WrongResult, equal_up_to_rounding
from bimkern.ops import WindowGroups, group_windows, keep_to_mask, random_keep, scale_mask
from bimkern.ops.group_windows import group_windows_reference

# Patches of a mask unit per side, in the four stages of a Swin.
STAGES = (8, 4, 2, 1)


def visible(case: Case, unit: int) -> Tensor:
    """Draw the visible tokens of a stage, [B, T], ascending: those of visible units, the same in every stage."""
    B, N, K = (case.dims[letter] for letter in "BNK")
    shown = 1 - keep_to_mask(random_keep(torch.arange(B), N, K, seed=0), N)
    return scale_mask(shown, unit).nonzero()[:, 1].view(B, -1)


def reference(keep: Tensor, grid: tuple[int, int], window: int, shift: int) -> WindowGroups:
    sides = min(window, grid[0]), min(window, grid[1])
    return WindowGroups(*group_windows_reference(keep, *grid, *sides, shift, shift, False))


def hold_to_windows(provider: str, groupings: Sequence[Grouping], expected: Sequence[Tensor]) -> None:
    """Hold published groups to the windows of the truth: tokens attend to each other where these are the same."""
    windows_of_masks = [windows for plan in expected[1::3] for windows in plan]
    for grouping, windows in zip(groupings, windows_of_masks, strict=True):
        T, slots = len(windows), grouping.slots
        present = torch.zeros(slots.numel(), dtype=torch.bool, device=slots.device)
        present = present.scatter(0, grouping.restore, True).view(slots.shape)
        same = (windows[slots][:, :, None] == windows[slots][:, None]) & (present[:, :, None] & present[:, None])
        if not torch.equal(grouping.mask[:, 0] == 0, same) or int(present.sum()) != T:
            raise WrongResult(f"{provider}: other tokens attend to each other than those of a window")


@entry("group_windows", shapes=shapes.GROUP, dtypes=("int64",), passes=("fwd",))
def measure(case: Case) -> Measure:
    """Plan on the host the groups of all stages of a Swin, shifted and not, for masks of 7 x 7 units."""
    window = case.dims["w"]
    plans = []
    for unit in STAGES:
        keep, side = visible(case, unit), 7 * unit
        shifts = (0, window // 2) if window < side else (0,)
        plans += [(keep, (side, side), window, shift) for shift in shifts]

    def planned(plan: Callable[..., WindowGroups]) -> list[Tensor]:
        tensors = []
        for arguments in plans:
            groups = plan(*arguments)
            groups = groups if case.device.type == "cpu" else groups.to(case.device)
            tensors += [groups.members, groups.windows, groups.positions]
        return tensors

    def published() -> list[Grouping]:
        return [
            group(mask, grid, window, shift) for keep, grid, window, shift in plans for mask in keep.to(case.device)
        ]

    def check(provider: str, got: Any, expected: Sequence[Tensor]) -> None:
        (hold_to_windows if provider == "published" else equal_up_to_rounding)(provider, got, expected)

    return Measure(
        ours=lambda: planned(group_windows),
        rivals={"published": published},
        reference=lambda: planned(reference),
        check=check,
        bytes=sum(20 * keep.numel() for keep, *_ in plans),  # keep in; windows, positions and members out
    )
