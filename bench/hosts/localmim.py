"""A host in the structure of LocalMIM's program for ViTs, written from the paper; projects carry copies as files.

Source: Wang et al. 2023 (LocalMIM), sections 3.1 to 3.3.
"""

import torch
from torch import Tensor, nn

from bench.hosts.hog import HOGLayer
from bench.hosts.mae import MaskedAutoencoderViT, layers

SCALES = (4.0, 2.0, 1.0, 0.5)


class ChannelNorm(nn.Module):
    """Normalize over the channels of [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(1, keepdim=True)
        x = centered / (centered.square().mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Decoder(nn.Module):
    """Tokens of one tapped layer to a prediction at one scale."""

    def __init__(self, in_width: int, width: int, out_length: int, scale: float, patches: int, depth: int, heads: int):
        super().__init__()
        self.decoder_embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + patches, width), requires_grad=False)
        self.decoder_blocks = layers(width, depth, heads)
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Sequential(*self.rescaling(width, scale))
        self.decoder_pred.append(nn.Conv2d(width // int(max(1, scale)), out_length, 1))

    @staticmethod
    def rescaling(width: int, scale: float) -> list[nn.Module]:
        if scale == 4:
            first = nn.ConvTranspose2d(width, width // 2, 2, 2)
            return [first, ChannelNorm(width // 2), nn.GELU(), nn.ConvTranspose2d(width // 2, width // 4, 2, 2)]
        if scale == 2:
            return [nn.ConvTranspose2d(width, width // 2, 2, 2)]
        return [nn.AvgPool2d(2, 2)] if scale < 1 else []

    def forward(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        x = self.decoder_embed(x)
        B, N = ids_restore.shape
        patches = torch.cat([x[:, 1:], self.mask_token.expand(B, N + 1 - x.shape[1], -1)], dim=1)
        patches = patches.gather(1, ids_restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        side = int(N**0.5)
        maps = self.decoder_norm(x)[:, 1:].mT.unflatten(2, (side, side))
        return self.decoder_pred(maps).flatten(2).mT


class LocalMaskedAutoencoderViT(nn.Module):
    """The network and its loss. Sizes are small unless given.

    Args:
        img_size: height and width.
        patch: side of a patch; cells of HOG are patch / 4 to patch * 2.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoders.
        hog_nbins, hog_bias: of the target.
    """

    def __init__(
        self,
        img_size: int = 32,
        patch: int = 8,
        width: int = 16,
        depth: int = 4,
        heads: int = 2,
        decoder_width: int = 16,
        decoder_depth: int = 1,
        decoder_heads: int = 2,
        hog_nbins: int = 9,
        hog_bias: bool = False,
    ) -> None:
        super().__init__()
        template = MaskedAutoencoderViT((img_size, img_size), patch, 3, width, depth=0, decoder_depth=0)
        self.patch_embed, self.cls_token, self.pos_embed = template.patch_embed, template.cls_token, template.pos_embed
        self.blocks = layers(width, depth, heads)
        self.ID = [1, 3, depth - 3, depth - 1] if depth > 6 else list(range(depth - 4, depth))
        self.scale = list(SCALES)
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in self.ID)
        patches = template.patch_embed.num_patches
        self.decoder = nn.ModuleList(
            Decoder(width, decoder_width, 3 * hog_nbins, scale, patches, decoder_depth, decoder_heads)
            for scale in self.scale
        )
        self.hog_enc = nn.ModuleList(HOGLayer(hog_nbins, int(patch / scale), hog_bias) for scale in self.scale)

    def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        return MaskedAutoencoderViT.random_masking(self, x, mask_ratio)  # type: ignore[arg-type]  # reads no attribute

    def HOG(self, imgs: Tensor, k: int) -> Tensor:
        maps = [self.hog_enc[k](channel) for channel in imgs.split(1, dim=1)]
        return torch.cat(maps, dim=1).flatten(2).mT

    def recal_mask(self, mask: Tensor, k: int) -> Tensor:
        scale, side = self.scale[k], int(mask.shape[1] ** 0.5)
        if scale >= 1:
            square = mask.view(-1, side, 1, side, 1).expand(-1, -1, int(scale), -1, int(scale))
            return square.reshape(len(mask), -1)
        cells = int(side * scale)
        return mask.view(-1, cells, side // cells, cells, side // cells).mean((2, 4)).flatten(1)

    def forward_encoder(self, x: Tensor, mask_ratio: float) -> tuple[list[Tensor], Tensor, Tensor]:
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, mask_ratio)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        latents = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ID:
                latents.append(self.norm[self.ID.index(index)](x))
        return latents, mask, ids_restore

    def forward_loss(self, imgs: Tensor, pred: list[Tensor], mask: Tensor) -> Tensor:
        losses = []
        for k, prediction in enumerate(pred):
            weight = self.recal_mask(mask, k)
            errors = (prediction - self.HOG(imgs, k)).square().mean(-1)
            losses.append((errors * weight).sum() / weight.sum())
        return sum(losses)  # type: ignore[return-value]  # of tensors

    def forward(self, imgs: Tensor, mask_ratio: float = 0.75) -> Tensor:
        latents, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = [decoder(latent, ids_restore) for decoder, latent in zip(self.decoder, latents, strict=True)]
        return self.forward_loss(imgs, pred, mask)
