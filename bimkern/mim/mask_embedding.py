"""How hidden patches are kept from the encoder: left out, replaced by a token, or painted over in the image.

Each is a module that embeds a batch for the first stage. The two that hide by filling in embed the visible patches
alone, and put one vector in the place of all others.

Shapes: B images, C channels, H W pixels, N patches, K visible patches, R prefix tokens, D width.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from bimkern.mim.masking.random import Hiding, StageView
from bimkern.models.vit import ViT, ViTConfig
from bimkern.ops import restore_tokens

INIT_STD = 0.02


class Drop(nn.Module):
    """Only visible patches enter the encoder: [B, R+K, D].

    Source: He et al. 2022 (MAE), section 3 "MAE encoder".
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()

    def forward(self, encoder: ViT, images: Tensor, view: StageView, mean: Tensor, std: Tensor) -> Tensor:
        return encoder.embed(images, view.keep, mean, std)


class _Fill(nn.Module):
    """All patches enter the encoder, [B, R+N, D]; the hidden ones as one learned vector plus their position."""

    def forward(self, encoder: ViT, images: Tensor, view: StageView, mean: Tensor, std: Tensor) -> Tensor:
        embed = encoder.patch_embed
        tokens = embed(images, view.keep, prefix=encoder.cls_token[0], mean=mean, std=std)  # [B, R+K, D]
        pos = encoder.pos_embed(images)
        vector = self.vector(encoder).to(tokens.dtype)
        if view.keep.shape[1] == len(pos):  # as many as there are, where images differ in how many are hidden
            prefix, patches = tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :]
            return torch.cat([prefix, torch.where(view.hidden[..., None] > 0, vector, patches) + pos], dim=1)
        return restore_tokens(tokens, view.keep, vector, pos, num_tokens=len(pos), num_prefix=encoder.num_prefix)

    @abstractmethod
    def vector(self, encoder: ViT) -> Tensor:
        """Return what stands for a hidden patch, [D], without its position."""


class Replace(_Fill):
    """A mask token takes the place of the embedding of a hidden patch.

    Source: Bao et al. 2022 (BEiT), section 2.3; Xie et al. 2022 (SimMIM), section 3.2; Wei et al. 2022 (MaskFeat).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=INIT_STD))

    def vector(self, encoder: ViT) -> Tensor:
        return self.mask_token.flatten()


class Paint(_Fill):
    """Hidden patches are painted over in the normalised image with one learned colour.

    The embedding of such a patch is the same wherever it lies, so the image itself is never painted.

    Source: Guo et al. 2022 (FastMIM), section 3; the colour as in its published program.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, config.channels, 1, 1).normal_(std=INIT_STD))

    def vector(self, encoder: ViT) -> Tensor:
        embed = encoder.patch_embed
        assert embed.bias is not None
        return embed.weight.sum(dim=(2, 3)) @ self.mask_token.flatten() + embed.bias


HIDING: dict[Hiding, type[Drop] | type[Replace] | type[Paint]] = {"drop": Drop, "replace": Replace, "paint": Paint}
