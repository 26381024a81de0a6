"""MatchHead: the parameters of multi-scale matching, one scale a head.

Shapes: B images, N = rows x columns tokens, D width, M = N * scale**2 cells, P values predicted a cell.
"""

import torch
from torch import Tensor, nn

from bimkern.ops.match import SCALES, MatchLayers, match_loss, match_predict
from bimkern.ops.match_fused import NORM_EPS


class MatchHead(nn.Module):
    """Bring tokens to another scale and predict the target there.

    Holds ordinary layers with their default initialization, of which only the parameters are used: `up1`, `norm`, `up2`
    and `pred` at scale 4, `up1` and `pred` at 2, `pred` at 1 and 0.5. Weights in published layouts load by renaming.

    Source: Wang et al. 2023 (LocalMIM), section 3.2; layers as in its published program.
    """

    compute_dtype: torch.dtype | None = None  # of the matrix products; None: that of the features

    def __init__(self, width: int, out_length: int, scale: float) -> None:
        """Make the layers of a scale.

        Args:
            width: D; a multiple of 4 at scale 4, of 2 at scale 2, since every deconvolution halves it.
            out_length: P.
            scale: 4, 2, 1 or 0.5.

        Raises:
            ValueError: the scale or the width is off.
        """
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"MatchHead: scale must be one of 4, 2, 1, 0.5, got {scale}")
        shrink = int(max(1, scale))
        if width % shrink:
            raise ValueError(f"MatchHead: width must be a multiple of {shrink} at scale={scale}, got {width}")
        self.scale = scale
        if scale > 1:
            self.up1 = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
        if scale == 4:
            self.norm = nn.LayerNorm(width // 2, eps=NORM_EPS)
            self.up2 = nn.ConvTranspose2d(width // 2, width // 4, kernel_size=2, stride=2)
        self.pred = nn.Conv2d(width // shrink, out_length, kernel_size=1)

    @property
    def layers(self) -> MatchLayers:
        """The parameters as match_loss takes them."""
        return MatchLayers(**{name.replace(".", "_"): parameter for name, parameter in self.named_parameters()})

    def forward(self, features: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Predict all cells [B, M, P] from tokens [B, N, D]: match_predict."""
        return match_predict(features, self.layers, self.scale, grid=grid, dtype=self.compute_dtype)

    def loss(
        self,
        features: Tensor,
        target: Tensor,
        mask: Tensor,
        grid: tuple[int, int] | None = None,
        denominator: Tensor | float | None = None,
        kind: str = "l2",
    ) -> Tensor:
        """Average the error over the masked cells: match_loss."""
        return match_loss(
            features,
            self.layers,
            target,
            mask,
            self.scale,
            kind=kind,
            grid=grid,
            denominator=denominator,
            dtype=self.compute_dtype,
        )
