"""SimMIM and MaskFeat in the structures of their programs, written from the papers: no package has them.

Source: Xie et al. 2022 (SimMIM), sections 3.1 to 3.4; Wei et al. 2022 (MaskFeat), sections 3.1 to 3.3.
"""

import torch
from torch import Tensor, nn

from bench.hosts.hog import HOGGenerator
from bench.hosts.mae import layers


class MaskedViT(nn.Module):
    """Encode all patches, masked ones by a mask token: images [B, C, H, W], mask [B, h, w] to tokens [B, N, D]."""

    def __init__(self, side: int, patch: int, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.in_chans, self.patch_size, self.num_features = channels, patch, width
        self.patch_embed = nn.Conv2d(channels, width, patch, patch)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width))
        self.blocks = layers(width, depth, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).mT
        w = mask.flatten(1)[:, :, None].type_as(x)
        x = x * (1 - w) + self.mask_token * w + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MapEncoder(MaskedViT):
    """The same, as maps [B, D, h, w]."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        tokens = super().forward(x, mask)
        return tokens.mT.reshape(len(x), -1, *mask.shape[1:])


class SimMIM(nn.Module):
    """The network and its loss: forward(x [B, C, H, W], mask [B, h, w], 1 where masked)."""

    def __init__(self, encoder: nn.Module, encoder_stride: int) -> None:
        super().__init__()
        self.encoder, self.encoder_stride = encoder, encoder_stride
        self.in_chans, self.patch_size = encoder.in_chans, encoder.patch_size
        values = encoder_stride**2 * self.in_chans  # type: ignore[operator]
        self.decoder = nn.Sequential(
            nn.Conv2d(encoder.num_features, values, 1),  # type: ignore[arg-type]
            nn.PixelShuffle(encoder_stride),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        images = self.decoder(self.encoder(x, mask))
        p = self.patch_size
        pixels = mask.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]  # type: ignore[arg-type]
        return ((x - images).abs() * pixels).sum() / (pixels.sum() + 1e-5) / self.in_chans


class PixelReconstructionLoss(nn.Module):
    """The loss of mmselfsup's heads, over masked tokens [B, N, P] or pixels [B, C, H, W]."""

    def __init__(self, criterion: str, channel: int | None = None) -> None:
        super().__init__()
        self.penalty = {"L1": nn.L1Loss, "L2": nn.MSELoss}[criterion](reduction="none")
        self.channel = channel or 1

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        each = self.penalty(pred, target)
        if each.ndim == 3:
            each = each.mean(-1)
        if mask is None:
            return each.mean()
        return (each * mask).sum() / mask.sum() / self.channel


class MaskFeat(nn.Module):
    """Predict HOG of masked patches: forward(x [B, C, H, W], mask [B, h, w]) returns the loss."""

    def __init__(self, backbone: MaskedViT, target_generator: HOGGenerator, criterion: str = "L2") -> None:
        super().__init__()
        self.backbone, self.target_generator = backbone, target_generator
        cells = backbone.patch_size // target_generator.pool
        self.neck = nn.Linear(backbone.num_features, backbone.in_chans * target_generator.nbins * cells**2)
        self.head = PixelReconstructionLoss(criterion)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(x, mask)), self.target_generator(x), mask.flatten(1).bool())
