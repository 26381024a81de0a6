"""Random masks of patches that do not enter the encoder.

Shapes: B images, N patches, K kept patches.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from bimkern import pieces
from bimkern.mim.mask_embedding import DropMasked, MaskEmbedding
from bimkern.mim.masking.masker import Masker, check_masked, num_kept
from bimkern.mim.masking.view import StageView
from bimkern.models.encoder import Grid
from bimkern.ops import keep_to_mask, random_keep


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class RandomDrop:
    """Mask a random share of the patches; only the others enter the encoder.

    With several ratios the mask grows: stage k processes a share 1 - ratios[k] of all patches, chosen inside those of
    the stage before. The cls token is never dropped.

    Source: He et al. 2022 (MAE), section 3 "masking"; Luo et al. 2023 (BIM), section 3.3 and table 4. The BIM paper
    leaves open what the decoder of a growing mask is shown and which mask weighs its loss: decoder_sees, loss_mask.
    """

    ratios: tuple[float, ...]  # one for every stage, or one for all
    decoder_sees: Literal["before_drop", "after_drop"] = "before_drop"
    loss_mask: Literal["stage", "first"] = "stage"
    mask_embedding: ClassVar[type[MaskEmbedding]] = DropMasked

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise ValueError(f"RandomDrop: ratios must be in (0, 1), got {self.ratios}")
        if list(self.ratios) != sorted(self.ratios):
            raise ValueError(f"RandomDrop: ratios must not fall, a masked patch stays masked, got {self.ratios}")

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        """Return the kept patches of every stage.

        Raises:
            ValueError: the number of ratios is neither 1 nor num_stages, or a stage would keep no patch or all.
        """
        if len(self.ratios) not in (1, num_stages):
            got = len(self.ratios)
            raise ValueError(f"RandomDrop: ratios must hold one value, or one per stage ({num_stages}), got {got}")
        num_tokens = grid[0] * grid[1]
        ratios = self.ratios * num_stages if len(self.ratios) == 1 else self.ratios
        counts = [num_kept(num_tokens, ratio) for ratio in ratios]
        for ratio, count in zip(ratios, counts, strict=True):
            check_masked("RandomDrop: ratios", ratio, num_tokens - count, num_tokens)
        return counts

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        num_tokens = grid[0] * grid[1]
        counts = self.entering(grid, num_stages)
        keep = random_keep(draw_ids, num_tokens, counts[0], seed=seed)
        weight = keep_to_mask(keep, num_tokens)
        keeps, masked = [keep], [weight]
        withins: list[Tensor | None] = [None]
        for before, count in pairwise(counts):
            within: Tensor | None = None
            if count < before:
                keep, within = random_keep(draw_ids, num_tokens, count, seed=seed, parent=keep)
                weight = keep_to_mask(keep, num_tokens) if self.loss_mask == "stage" else weight
            keeps.append(keep)
            withins.append(within)
            masked.append(weight)
        views = []
        for k, keep in enumerate(keeps):
            shown = k + 1 if self.decoder_sees == "after_drop" and k + 1 < num_stages else k
            views.append(
                StageView(
                    grid=grid,
                    keep=keep,
                    within=withins[k],
                    masked=masked[k],
                    decoded=keeps[shown],
                    decoded_within=withins[shown] if shown > k else None,
                )
            )
        return views
