"""Mask embeddings: what stands for masked patches in the encoder. Nothing, a token, or a color in the image.

Shapes: B images, C channels, H W pixels, N patches, K visible patches, R prefix tokens, D width.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bimkern.mim.masking.view import StageView
from bimkern.models.encoder import EmbedsFilled, EmbedsPainted, EmbedsVisible, EncoderConfig

INIT_STD = 0.02


class MaskEmbedding(nn.Module, ABC):
    """Embeds a batch for the first stage."""

    drops: ClassVar[bool] = False  # whether masked patches do not enter the encoder
    needs: ClassVar[str]  # the method that an encoder must have

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, encoder: Any, images: Tensor, view: StageView, mean: Tensor, std: Tensor) -> Tensor:
        """Embed uint8 images [B, C, H, W] as the tokens that enter the encoder: [B, R+T, D], T of K or N."""


class DropMasked(MaskEmbedding):
    """Only visible patches enter the encoder: [B, R+K, D].

    Source: He et al. 2022 (MAE), section 3 "MAE encoder".
    """

    drops = True
    needs = "embed_visible"

    def forward(self, encoder: EmbedsVisible, images: Tensor, view: StageView, mean: Tensor, std: Tensor) -> Tensor:
        return encoder.embed_visible(images, view.keep, mean, std)


class MaskToken(MaskEmbedding):
    """A learned token replaces the embedding of a masked patch: [B, R+N, D].

    Source: Bao et al. 2022 (BEiT), section 2.3; Xie et al. 2022 (SimMIM), section 3.2; Wei et al. 2022 (MaskFeat).
    """

    needs = "embed_filled"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.level(0).width).normal_(std=INIT_STD))

    def forward(self, encoder: EmbedsFilled, images: Tensor, view: StageView, mean: Tensor, std: Tensor) -> Tensor:
        return encoder.embed_filled(images, view, self.mask_token, mean, std)


class MaskPixels(MaskEmbedding):
    """Masked patches are painted over in the normalized image with one learned color: [B, R+N, D].

    Source: Guo et al. 2022 (FastMIM), section 3; the color as in its published program.
    """

    needs = "embed_painted"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, config.channels, 1, 1).normal_(std=INIT_STD))

    def forward(self, encoder: EmbedsPainted, images: Tensor, view: StageView, mean: Tensor, std: Tensor) -> Tensor:
        return encoder.embed_painted(images, view, self.mask_token, mean, std)
