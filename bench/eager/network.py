"""A masked autoencoder in the usual form, with any number of taps; parameter names are those of bimkern.mim.model.

All patches are embedded by a convolution. Noise is sorted, and the order of the sorting leads back (`ids_restore`).
Mask tokens are concatenated. The loss is taken on all patches and multiplied by the mask.

Shapes: B images, N patches, K kept patches, D width, P values of a patch, R prefix tokens: a cls token.

Source: He et al. 2022 (MAE), section 3 and appendix A.1; Luo et al. 2023 (BIM), section 3, for several taps.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.eager.form import Form
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.models.encoder import NormalizesOtherwise
from bimkern.models.heads import DecoderConfig
from bimkern.models.pos_embed import sincos_table
from bimkern.models.swin import SwinConfig
from bimkern.models.vit import ViTConfig

_EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _positions(width: int, grid: tuple[int, int], num_prefix: int) -> Tensor:
    table = sincos_table(width, grid)
    return torch.cat([torch.zeros(num_prefix, width), table])[None]  # [1, R+N, D]


class Encoder(nn.Module):
    pos_embed: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("pos_embed", _positions(config.width, config.grid, config.num_prefix), persistent=False)
        self.blocks = nn.ModuleList(
            Layer(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )

    def embed(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # [B, N, D]
        x = x + self.pos_embed[:, 1:]
        x = torch.gather(x, 1, ids_keep.unsqueeze(-1).repeat(1, 1, x.shape[-1]))
        cls = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls.expand(len(x), -1, -1), x], dim=1)


class Decoder(nn.Module):
    pos_embed: Tensor

    def __init__(self, encoder: ViTConfig | SwinConfig, config: DecoderConfig) -> None:
        super().__init__()
        level, self.num_prefix = encoder.level(encoder.depth), encoder.num_prefix
        grid = level.grid(*encoder.image_size)
        eps = encoder.norm_eps if isinstance(encoder, NormalizesOtherwise) else _EPS
        self.in_norm = nn.LayerNorm(level.width, eps=eps)
        self.embed = nn.Linear(level.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("pos_embed", _positions(config.width, grid, self.num_prefix), persistent=False)
        self.blocks = nn.ModuleList(
            Layer(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.pred = nn.Linear(config.width, encoder.channels * level.patch**2)

    def forward(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        x, R = self.embed(self.in_norm(x)), self.num_prefix
        mask_tokens = self.mask_token.repeat(len(x), ids_restore.shape[1] + R - x.shape[1], 1)
        tokens = torch.cat([x[:, R:], mask_tokens.to(x.dtype)], dim=1)
        tokens = torch.gather(tokens, 1, ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :R], tokens], dim=1) + self.pos_embed
        for layer in self.blocks:
            x = layer(x)
        return self.pred(self.norm(x))[:, R:]


class Network(nn.Module):
    encoder: Any  # an Encoder here, another in a network of another kind
    mean: Tensor
    std: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.level = form.encoder.level(form.encoder.depth)
        self.encoder = self.build_encoder()
        self.heads = nn.ModuleList(Decoder(form.encoder, form.decoder) for _ in form.taps)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)

    def build_encoder(self) -> nn.Module:
        assert isinstance(self.form.encoder, ViTConfig)
        return Encoder(self.form.encoder)

    def noise(self, num_images: int) -> Tensor:
        """Draw numbers whose order masks the patches of the last level, those of most first: [B, N]."""
        return torch.rand(num_images, self.num_patches, device=self.mean.device)

    @property
    def num_patches(self) -> int:
        return math.prod(self.level.grid(*self.form.encoder.image_size))

    def normalize(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std

    def stage(self, stage: int, x: Tensor, ids_shuffle: Tensor) -> Tensor:
        """Run a stage; the first takes images, the others drop the end of what they are given."""
        first = self.form.taps[stage - 1] + 1 if stage else 0
        kept = self.form.kept[stage]
        x = self.encoder.embed(x, ids_shuffle[:, :kept]) if stage == 0 else x[:, : 1 + kept]
        for layer in self.encoder.blocks[first : self.form.taps[stage] + 1]:
            x = layer(x)
        return x

    def forward(self, images: Tensor, ids_shuffle: Tensor, ids_restore: Tensor) -> Tensor:
        """Return the losses of all stages, [S], whose gradients reach the images."""
        losses, x = [], images
        for stage in range(len(self.heads)):
            x = self.stage(stage, x, ids_shuffle)
            losses.append(self.loss(stage, x, images, ids_restore))
        return torch.stack(losses)

    def patchify(self, images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        p = self.level.patch
        x = images.reshape(B, C, H // p, p, W // p, p)
        return torch.einsum("nchpwq->nhwpqc", x).reshape(B, (H // p) * (W // p), p * p * C)

    def loss(self, stage: int, x: Tensor, images: Tensor, ids_restore: Tensor) -> Tensor:
        mask = torch.ones(ids_restore.shape, device=x.device)
        mask[:, : self.form.kept[stage]] = 0
        mask = torch.gather(mask, 1, ids_restore)
        target = self.patchify(images)
        if self.form.normalize:
            mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
            target = (target - mean) / (var + _EPS) ** 0.5
        error = ((self.heads[stage](x, ids_restore) - target) ** 2).mean(dim=-1)  # [B, N]
        return (error * mask).sum() / mask.sum()
