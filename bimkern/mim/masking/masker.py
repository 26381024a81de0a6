"""Maskers: which patches are masked, per image and per stage.

Shapes: B images.
"""

from typing import Protocol

from torch import Tensor

from bimkern.mim.mask_embedding import MaskEmbedding
from bimkern.mim.masking.view import StageView
from bimkern.models.encoder import Grid


class Masker(Protocol):
    """Draws which patches are masked; a frozen dataclass."""

    @property
    def mask_embedding(self) -> type[MaskEmbedding]:
        """What stands for masked patches in the encoder."""

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        """Return how many patches enter every stage.

        Raises:
            ValueError: such a grid or number of stages cannot be masked, or nothing or everything would be masked.
        """

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        """Draw what every stage sees of the samples draw_ids [B], int64.

        The draw depends on (seed, draw id) alone, the draw id of the first sample where all share a mask.

        Raises:
            ValueError: as entering.
        """


def num_kept(num_tokens: int, ratio: float) -> int:
    """Return how many tokens a mask of this ratio keeps, by the published rule int(N * (1 - ratio)).

    The product is truncated in double precision, as in MAE: 100 tokens at 0.9 keep 9, not 10.
    """
    return int(num_tokens * (1 - ratio))


def check_masked(argument: str, ratio: float, num_masked: int, num_tokens: int, what: str = "patches") -> None:
    """Refuse a ratio that masks nothing, and so has no loss, or everything, which leaves no input.

    Raises:
        ValueError: num_masked is not in [1, num_tokens - 1].
    """
    if not 0 < num_masked < num_tokens:
        raise ValueError(
            f"{argument} must mask at least 1 and leave at least 1 of {num_tokens} {what}, "
            f"got {ratio}, which masks {num_masked}"
        )
