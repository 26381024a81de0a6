"""What a stage sees of a batch.

Shapes: B images, N patches, K kept patches, R prefix tokens, D width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bimkern.models.encoder import Grid, ViewPlan
from bimkern.models.windows import coarsened
from bimkern.ops import gather_tokens, keep_to_mask


@dataclass(frozen=True)
class StageView:
    """Which tokens enter a stage, which its head decodes, which count in the loss.

    A masker draws it on the grid of patches. The method then lists what is decoded on the grid that the stage puts out.
    """

    grid: Grid  # rows and columns of the N patches
    keep: Tensor  # [B, K] visible patches of this stage; views of one row where all images share a mask
    within: Tensor | None  # [B, K] their indices among the tokens of the stage before; None where that has the same
    masked: Tensor  # [B, N] loss weight
    decoded: Tensor | None  # [B, K'] tokens that the head is shown; None: all N, the masked ones filled in
    decoded_within: Tensor | None  # [B, K'] their indices among this stage's tokens; None where they are all of them
    plan: ViewPlan | None = None  # what the encoder planned for the patches that enter it
    chosen: Tensor | None = None  # [B, C] tokens that the head decodes to the end, all that have weight; None: all N

    def enter(self, tokens: Tensor, num_prefix: int) -> Tensor:
        """Drop the tokens of the stage before that this stage does not see."""
        return tokens if self.within is None else gather_tokens(tokens, self.within, num_prefix=num_prefix)

    def show(self, tokens: Tensor, num_prefix: int) -> Tensor:
        """Drop the tokens of this stage that its head is not shown."""
        if self.decoded_within is None:
            return tokens
        return gather_tokens(tokens, self.decoded_within, num_prefix=num_prefix)

    def masked_share(self, grid: Grid) -> Tensor:
        """Return the share that is masked of every cell of another grid over the image, [B, 1, h, w]."""
        return adaptive_avg_pool2d(self.masked.unflatten(1, (1, *self.grid)), grid)

    def weights(self, grid: Grid) -> Tensor:
        """Return the loss weights of the tokens of a grid, [B, h * w]."""
        return self.masked if grid == self.grid else self.masked_share(grid).flatten(1)

    def weighted(self, dtype: torch.dtype) -> "StageView":
        """Return the view with loss weights of dtype."""
        return replace(self, masked=self.masked.to(dtype))

    def decoded_on(self, grid: Grid) -> "StageView":
        """Return the view with what is decoded on a coarser grid, whose cells are visible or masked as a whole."""
        if self.decoded is None or grid == self.grid:
            return self
        return replace(self, decoded=coarsened(self.decoded, self.grid, grid))

    def map(self, change: Callable[[Tensor], Tensor]) -> "StageView":
        """Return the view with each of its tensors changed, without its plan."""
        tensors: dict[str, Any] = {name: change(v) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors, plan=None)

    def rows(self, rows: slice) -> "StageView":
        """Return the view of a slice of the batch."""
        plan = self.plan
        if plan is not None:
            plan = plan.map(lambda tensor: tensor[rows] if len(tensor) > 1 else tensor)
        return replace(self.map(lambda tensor: tensor[rows]), plan=plan)


def copied(views: Iterable[StageView], copy: Callable[[Tensor], Any]) -> list[StageView]:
    """Return views with a copy of each of their tensors and plans; what several share is copied once."""
    copies: dict[int, Any] = {}

    def once(thing: Any, copy: Callable[[Any], Any]) -> Any:
        if id(thing) not in copies:
            copies[id(thing)] = copy(thing)
        return copies[id(thing)]

    views = list(views)
    plans = [None if view.plan is None else once(view.plan, lambda plan: plan.map(copy)) for view in views]
    moved = [view.map(lambda tensor: once(tensor, copy)) for view in views]
    return [replace(view, plan=plan) for view, plan in zip(moved, plans, strict=True)]


def on_device(views: Iterable[StageView], device: torch.device) -> list[StageView]:
    """Copy views from the host; what several share is copied once, and no copy waits for the device."""

    def copy(tensor: Tensor) -> Tensor:
        if tensor.device == device:
            return tensor
        if len(tensor) > 1 and tensor.stride(0) == 0:
            return copy(tensor[:1]).expand_as(tensor)
        return tensor.pin_memory().to(device, non_blocking=True)

    return copied(views, copy)


def filled_view(grid: Grid, keep: Tensor, masked: Tensor | None = None) -> StageView:
    """Return what a stage sees where all tokens pass it.

    Args:
        grid: rows and columns of the N patches.
        keep: [B, K] visible patches, ascending; all N of them where masked is given.
        masked: [B, N] of 0 and 1, where images have different numbers of visible patches.
    """
    weight = keep_to_mask(keep, grid[0] * grid[1]) if masked is None else masked
    return StageView(grid=grid, keep=keep, within=None, masked=weight, decoded=None, decoded_within=None)


def dropped_view(grid: Grid, keep: Tensor) -> StageView:
    """Return what a stage sees, and its head is shown, where only the visible patches keep [B, K] enter the encoder."""
    masked = keep_to_mask(keep, grid[0] * grid[1])
    return StageView(grid=grid, keep=keep, within=None, masked=masked, decoded=keep, decoded_within=None)
