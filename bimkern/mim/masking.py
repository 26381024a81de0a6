"""Maskers: which patches are hidden, per image and per stage.

Shapes: B images, N patches, K kept patches.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bimkern.ops import gather_tokens, keep_to_mask, random_keep


def num_kept(num_tokens: int, ratio: float) -> int:
    """Return how many tokens a mask of this ratio keeps, by the published rule int(N * (1 - ratio)).

    The product is truncated in double precision, as in MAE: 100 tokens at 0.9 keep 9, not 10.
    """
    return int(num_tokens * (1 - ratio))


@dataclass(frozen=True)
class StageView:
    """What one stage sees of a batch: which tokens enter it, which its head decodes, which count in the loss."""

    keep: Tensor  # [B, K] tokens of this stage
    within: Tensor | None  # [B, K] their places among the tokens of the stage before; None for the first stage
    hidden: Tensor  # [B, N] loss weight
    decoded: Tensor  # [B, K'] tokens that the head is shown
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

        def cut(index: Tensor | None) -> Tensor | None:
            return None if index is None else index[rows]

        return StageView(
            self.keep[rows], cut(self.within), self.hidden[rows], self.decoded[rows], cut(self.decoded_within)
        )


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

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 <= ratio < 1 for ratio in self.ratios):
            raise ValueError(f"RandomDrop: ratios must be in [0, 1), got {self.ratios}")
        if list(self.ratios) != sorted(self.ratios):
            raise ValueError(f"RandomDrop: ratios must not fall, a hidden patch stays hidden, got {self.ratios}")

    def counts(self, num_tokens: int, num_stages: int) -> list[int]:
        """Return the kept tokens of every stage.

        Raises:
            ValueError: the number of ratios is neither 1 nor num_stages, or a stage would keep no token.
        """
        if len(self.ratios) not in (1, num_stages):
            raise ValueError(f"RandomDrop: ratios must hold 1 or {num_stages} values, got {len(self.ratios)}")
        ratios = self.ratios * num_stages if len(self.ratios) == 1 else self.ratios
        counts = [num_kept(num_tokens, ratio) for ratio in ratios]
        if counts[-1] < 1:
            raise ValueError(f"RandomDrop: ratio {ratios[-1]} leaves none of {num_tokens} patches visible")
        return counts

    def views(self, draw_ids: Tensor, num_tokens: int, num_stages: int, seed: int) -> list[StageView]:
        """Draw what every stage sees of the samples draw_ids [B], int64; the draw depends on (seed, draw id) alone."""
        counts = self.counts(num_tokens, num_stages)
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
                    keep=keep,
                    within=withins[k],
                    hidden=hidden[k],
                    decoded=keeps[shown],
                    decoded_within=withins[shown] if shown > k else None,
                )
            )
        return views
