"""Targets: what is predicted for every patch.

Shapes: B images, C channels, H W pixels, N patches, P values a patch.
"""

from dataclasses import dataclass

from torch import Tensor

from bimkern.ops import pixel_targets


@dataclass(frozen=True, kw_only=True)
class PixelTarget:
    """The pixels of a patch, raw or normalised by the patch's own mean and variance.

    Source: He et al. 2022 (MAE), section 3 "reconstruction target" and table 1d.
    """

    normalize: bool = True

    def length(self, channels: int, patch: int) -> int:
        return channels * patch * patch

    def __call__(self, images: Tensor, patch: int) -> Tensor:
        """Compute [B, N, P] from normalised images [B, C, H, W]."""
        return pixel_targets(images, patch, self.normalize)


def unpatchify(vectors: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Lay patch vectors [B, N, p*p*C] out as images [B, C, H, W]; the inverse of raw pixel targets."""
    rows, columns = grid
    cells = vectors.reshape(len(vectors), rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
