"""Blockwise masks: rectangles of random area and aspect, until enough is masked.

Shapes: B images, N = rows x columns patches, A attempts.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bimkern import pieces
from bimkern.mim.mask_embedding import MaskEmbedding, MaskToken
from bimkern.mim.masking.masker import Masker, check_masked
from bimkern.mim.masking.view import StageView, filled_view
from bimkern.models.encoder import Grid
from bimkern.ops.random_keep import token_priorities
from bimkern.rng import WORD, Stream, draw

_ATTEMPTS = 96  # in all; a mask takes 20 to 50
_FAILURES = 10  # in a row, which end a mask short of its target


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class Blockwise:
    """Mask rectangles that may overlap, with a mask token that replaces patch embeddings.

    The published loop stops at or below its target, so images differ in how much is masked and weigh differently in the
    loss. `exact` masks random further patches up to the target.

    Source: Bao et al. 2022 (BEiT), section 2.3 and algorithm 1; numbers of Wei et al. 2022 (MaskFeat).
    """

    ratio: float
    min_share: float = 0.2  # of the masked patches that a rectangle has at least: 15 of 78
    aspect: float = 0.3  # least height over width, and width over height
    exact: bool = True
    mask_embedding: ClassVar[type[MaskEmbedding]] = MaskToken

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"Blockwise: ratio must be in (0, 1), got {self.ratio}")
        if not 0 <= self.min_share < 1:
            raise ValueError(f"Blockwise: min_share must be in [0, 1), got {self.min_share}")
        if not 0 < self.aspect <= 1:
            raise ValueError(f"Blockwise: aspect must be in (0, 1], got {self.aspect}")

    def num_masked(self, grid: Grid) -> int:
        """Return how many patches are masked; at most that many where it need not be exact.

        Raises:
            ValueError: it would mask no patch or all, or has no room for a rectangle.
        """
        num_tokens = grid[0] * grid[1]
        num_masked = round(num_tokens * self.ratio)
        check_masked("Blockwise: ratio", self.ratio, num_masked, num_tokens)
        if not self.exact and min(grid) < 2:  # a rectangle is less high and less wide than the grid
            raise ValueError(f"Blockwise: exact must be True for {grid[0]} x {grid[1]} patches, got False")
        return num_masked

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        self.num_masked(grid)
        return [grid[0] * grid[1]] * num_stages

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        num_tokens, num_masked = grid[0] * grid[1], self.num_masked(grid)
        masked = self.rectangles(draw_ids, grid, seed)  # [B, N]
        if not self.exact:
            everything = torch.arange(num_tokens, device=masked.device).expand(len(masked), -1)
            return [filled_view(grid, everything, masked.float())] * num_stages
        order = token_priorities(draw_ids, num_tokens, seed).masked_fill(masked, -1).argsort(dim=1, stable=True)
        return [filled_view(grid, order[:, num_masked:].sort(dim=1).values)] * num_stages

    def rectangles(self, draw_ids: Tensor, grid: Grid, seed: int) -> Tensor:
        """Draw the rectangles of every image, [B, N] bool, at most num_masked of each; no step waits for the device."""
        device, num_masked = draw_ids.device, self.num_masked(grid)
        places = torch.arange(max(grid), device=device)
        sides = torch.tensor(grid, device=device).view(2, 1, 1)
        ends = sides + 1
        smallest = int(num_masked * self.min_share)
        visible = torch.ones(len(draw_ids), *grid, dtype=torch.bool, device=device)
        failures = torch.zeros_like(draw_ids)
        remaining = torch.full_like(draw_ids, num_masked)
        log_aspect = math.log(self.aspect)
        u_area, u_aspect, *u_begin = _uniform(draw_ids, seed)  # each [A, B]
        aspects = torch.exp(log_aspect - 2 * log_aspect * u_aspect)
        u_begins = torch.stack(u_begin, dim=1).unsqueeze(-1)  # [A, 2, B, 1]
        # Few operations an attempt: each start of a run traces all of them, to learn what memory a step needs.
        for u, aspect, u_place in zip(u_area.unbind(), aspects.unbind(), u_begins.unbind(), strict=True):
            area = smallest + u * (remaining - smallest)
            size = torch.stack((area * aspect, area / aspect)).sqrt().round().unsqueeze(-1)  # [2, B, 1]: height, width
            begin = (u_place * (ends - size)).floor()
            in_rows, in_columns = ((begin <= places) & (places < begin + size)).unbind()  # each [B, places]
            added = in_rows[:, : grid[0], None] & in_columns[:, None, : grid[1]] & visible
            num_added = added.sum(dim=(1, 2))
            fits = (size < sides).all(dim=0).squeeze(-1) & (0 < num_added) & (num_added <= remaining)
            accepted = fits & (failures < _FAILURES)
            visible ^= added & accepted[:, None, None]
            remaining -= num_added * accepted
            failures.add_(1).masked_fill_(accepted, 0)
        return ~visible.flatten(1)


def _uniform(draw_ids: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Draw four numbers in [0, 1) for every attempt, each [A, B]."""
    attempts = torch.arange(_ATTEMPTS, device=draw_ids.device).unsqueeze(1)  # [A, 1]
    words = draw(Stream.RECTANGLE, attempts, draw_ids, seed)
    return tuple(word.double() / (WORD + 1) for word in words)
