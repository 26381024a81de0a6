"""Maskers: which patches are hidden, per image and per stage; here those whose hidden patches are left out.

Shapes: B images, N patches, K kept patches.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from bimkern.ops import gather_tokens, keep_to_mask, random_keep

Hiding = Literal["drop", "replace", "paint"]
Grid = tuple[int, int]


def num_kept(num_tokens: int, ratio: float) -> int:
    """Return how many tokens a mask of this ratio keeps, by the published rule int(N * (1 - ratio)).

    The product is truncated in double precision, as in MAE: 100 tokens at 0.9 keep 9, not 10.
    """
    return int(num_tokens * (1 - ratio))


def check_hidden(argument: str, ratio: float, num_hidden: int, num_tokens: int, what: str = "patches") -> None:
    """Refuse a mask that hides nothing, of which there is no loss, or everything, which leaves no input.

    Raises:
        ValueError: num_hidden is not in [1, num_tokens - 1].
    """
    if not 0 < num_hidden < num_tokens:
        raise ValueError(
            f"{argument} must hide at least 1 and leave at least 1 of {num_tokens} {what}, "
            f"got {ratio}, which hides {num_hidden}"
        )


@dataclass(frozen=True)
class StageView:
    """What one stage sees of a batch: which tokens enter it, which its head decodes, which count in the loss."""

    grid: Grid  # rows and columns of the N patches
    keep: Tensor  # [B, K] visible patches of this stage
    within: Tensor | None  # [B, K] their places among the tokens of the stage before; None where that has the same
    hidden: Tensor  # [B, N] loss weight
    decoded: Tensor | None  # [B, K'] tokens that the head is shown; None: all N, the hidden ones filled in
    decoded_within: Tensor | None  # [B, K'] their places among this stage's tokens; None where they are all of them

    def enter(self, tokens: Tensor, num_prefix: int) -> Tensor:
        """Drop the tokens of the stage before that this stage does not see."""
        return tokens if self.within is None else gather_tokens(tokens, self.within, num_prefix=num_prefix)

    def show(self, tokens: Tensor, num_prefix: int) -> Tensor:
        """Drop the tokens of this stage that its head is not shown."""
        if self.decoded_within is None:
            return tokens
        return gather_tokens(tokens, self.decoded_within, num_prefix=num_prefix)

    def weighted(self, dtype: torch.dtype) -> "StageView":
        """Return the view with loss weights of dtype."""
        return replace(self, hidden=self.hidden.to(dtype))

    def rows(self, rows: slice) -> "StageView":
        """Return the view of a slice of the batch."""
        tensors: dict[str, Any] = {name: v[rows] for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


class Masker(Protocol):
    """Draws which patches are hidden from whom."""

    @property
    def hiding(self) -> Hiding:
        """How hidden patches are kept from the encoder; hiding.py has a module for each."""

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        """Return how many patches enter every stage.

        Raises:
            ValueError: such a grid or number of stages cannot be masked, or nothing or everything would be hidden.
        """

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        """Draw what every stage sees of the samples draw_ids [B], int64; the draw depends on (seed, draw id) alone.

        Raises:
            ValueError: as entering.
        """


@dataclass(frozen=True, kw_only=True)
class RandomDrop:
    """Hide a random share of the patches; only the others enter the encoder.

    With several ratios the mask grows: stage k processes a share 1 - ratios[k] of all patches, chosen inside those of
    the stage before. The cls token is never dropped.

    Source: He et al. 2022 (MAE), section 3 "masking"; Luo et al. 2023 (BIM), section 3.3 and table 4. The BIM paper
    leaves open what the decoder of a growing mask is shown and which mask weighs its loss: decoder_sees, loss_mask.
    """

    ratios: tuple[float, ...]  # one for every stage, or one for all
    decoder_sees: Literal["before_drop", "after_drop"] = "before_drop"
    loss_mask: Literal["stage", "first"] = "stage"
    hiding: ClassVar[Hiding] = "drop"

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise ValueError(f"RandomDrop: ratios must be in (0, 1), got {self.ratios}")
        if list(self.ratios) != sorted(self.ratios):
            raise ValueError(f"RandomDrop: ratios must not fall, a hidden patch stays hidden, got {self.ratios}")

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        """Return the kept patches of every stage.

        Raises:
            ValueError: the number of ratios is neither 1 nor num_stages, or a stage would keep no patch or all.
        """
        if len(self.ratios) not in (1, num_stages):
            raise ValueError(f"RandomDrop: ratios must hold 1 or {num_stages} values, got {len(self.ratios)}")
        num_tokens = grid[0] * grid[1]
        ratios = self.ratios * num_stages if len(self.ratios) == 1 else self.ratios
        counts = [num_kept(num_tokens, ratio) for ratio in ratios]
        for ratio, count in zip(ratios, counts, strict=True):
            check_hidden("RandomDrop: ratios", ratio, num_tokens - count, num_tokens)
        return counts

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        num_tokens = grid[0] * grid[1]
        counts = self.entering(grid, num_stages)
        keep = random_keep(draw_ids, num_tokens, counts[0], seed=seed)
        weight = keep_to_mask(keep, num_tokens)
        keeps, hidden = [keep], [weight]
        withins: list[Tensor | None] = [None]
        for before, count in pairwise(counts):
            within: Tensor | None = None
            if count < before:
                keep, within = random_keep(draw_ids, num_tokens, count, seed=seed, parent=keep)
                weight = keep_to_mask(keep, num_tokens) if self.loss_mask == "stage" else weight
            keeps.append(keep)
            withins.append(within)
            hidden.append(weight)
        views = []
        for k, keep in enumerate(keeps):
            shown = k + 1 if self.decoder_sees == "after_drop" and k + 1 < num_stages else k
            views.append(
                StageView(
                    grid=grid,
                    keep=keep,
                    within=withins[k],
                    hidden=hidden[k],
                    decoded=keeps[shown],
                    decoded_within=withins[shown] if shown > k else None,
                )
            )
        return views
