"""A host in the structure of MAE's program, written from the paper: no package has it, yet many projects carry a copy.

Source: He et al. 2022 (MAE), sections 3 and 4.
"""

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    def __init__(self, img_size: tuple[int, int], patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, (patch, patch)
        self.num_patches = (img_size[0] // patch) * (img_size[1] // patch)
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == self.img_size
        return self.proj(x).flatten(2).mT


def layers(width: int, depth: int, heads: int) -> nn.ModuleList:
    """Return transformer layers without dropout, normalized at their start."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    )


class MaskedAutoencoderViT(nn.Module):
    """The network and its loss. Sizes are small unless given.

    Args:
        img_size: height and width.
        patch: side of a patch.
        channels: of an image.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        norm_pix_loss: bring every patch to zero mean and unit variance.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (32, 32),
        patch: int = 8,
        channels: int = 3,
        width: int = 16,
        depth: int = 2,
        heads: int = 2,
        decoder_width: int = 12,
        decoder_depth: int = 1,
        decoder_heads: int = 2,
        norm_pix_loss: bool = True,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch, channels, width)
        tokens = 1 + self.patch_embed.num_patches
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width), requires_grad=False)
        self.blocks = layers(width, depth, heads)
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, decoder_width), requires_grad=False)
        self.decoder_blocks = layers(decoder_width, decoder_depth, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch * patch * channels)
        self.norm_pix_loss = norm_pix_loss

    def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = x.shape
        kept = int(N * (1 - mask_ratio))
        shuffled = torch.rand(B, N, device=x.device).argsort(dim=1)
        ids_restore = shuffled.argsort(dim=1)
        visible = x.gather(1, shuffled[:, :kept, None].expand(-1, -1, D))
        mask = (torch.arange(N, device=x.device) >= kept).float().expand(B, -1).gather(1, ids_restore)
        return visible, mask, ids_restore

    def forward_encoder(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, mask_ratio)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        x = self.decoder_embed(x)
        missing = ids_restore.shape[1] + 1 - x.shape[1]
        patches = torch.cat([x[:, 1:], self.mask_token.expand(len(x), missing, -1)], dim=1)
        patches = patches.gather(1, ids_restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:, :]

    def patchify(self, imgs: Tensor) -> Tensor:
        p = self.patch_embed.patch_size[0]
        B, C, H, W = imgs.shape
        return imgs.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1).reshape(B, -1, p * p * C)

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        target = self.patchify(imgs)
        if self.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    def forward(self, imgs: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask
