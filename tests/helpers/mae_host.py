"""A host in the structure of MAE's program, written from the paper: what the drop-in must recognize without a package."""

import torch
from torch import nn


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch, channels, width):
        super().__init__()
        self.img_size, self.patch_size = img_size, (patch, patch)
        self.num_patches = (img_size[0] // patch) * (img_size[1] // patch)
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x):
        assert x.shape[2:] == self.img_size
        return self.proj(x).flatten(2).mT


def layer(width):
    return nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)


class MaskedAutoencoderViT(nn.Module):
    def __init__(self, img_size=(32, 32), patch=8, channels=3, width=16, decoder_width=12, norm_pix_loss=True):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch, channels, width)
        tokens = 1 + self.patch_embed.num_patches
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width), requires_grad=False)
        self.blocks = nn.ModuleList([layer(width), layer(width)])
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([layer(decoder_width)])
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch * patch * channels)
        self.norm_pix_loss = norm_pix_loss

    def random_masking(self, x, mask_ratio):
        B, N, D = x.shape
        kept = int(N * (1 - mask_ratio))
        shuffled = torch.rand(B, N, device=x.device).argsort(dim=1)
        ids_restore = shuffled.argsort(dim=1)
        visible = x.gather(1, shuffled[:, :kept, None].expand(-1, -1, D))
        mask = (torch.arange(N, device=x.device) >= kept).float().expand(B, -1).gather(1, ids_restore)
        return visible, mask, ids_restore

    def forward_encoder(self, x, mask_ratio):
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, mask_ratio)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, x, ids_restore):
        x = self.decoder_embed(x)
        missing = ids_restore.shape[1] + 1 - x.shape[1]
        patches = torch.cat([x[:, 1:], self.mask_token.expand(len(x), missing, -1)], dim=1)
        patches = patches.gather(1, ids_restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:, :]

    def patchify(self, imgs):
        p = self.patch_embed.patch_size[0]
        B, C, H, W = imgs.shape
        return imgs.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1).reshape(B, -1, p * p * C)

    def forward_loss(self, imgs, pred, mask):
        target = self.patchify(imgs)
        if self.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    def forward(self, imgs, mask_ratio=0.75):
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask
