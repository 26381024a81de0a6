"""A masked autoencoder in the usual form, with any number of taps; parameter names are those of bimkern.mim.model.

All patches are embedded by a convolution. Noise is sorted, and the order of the sorting leads back (`ids_restore`).
Mask tokens are concatenated. The loss is taken on all patches and multiplied by the mask.

Shapes: B images, N patches, K kept patches, D width, P values of a patch; one cls token.

Source: He et al. 2022 (MAE), section 3 and appendix A.1; Luo et al. 2023 (BIM), section 3, for several taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.eager.form import Form
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.models.heads import DecoderConfig
from bimkern.models.pos_embed import sincos_table
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


def _positions(width: int, grid: tuple[int, int]) -> Tensor:
    table = sincos_table(width, grid)
    return torch.cat([torch.zeros(1, width), table])[None]  # [1, 1+N, D]


class Encoder(nn.Module):
    pos_embed: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("pos_embed", _positions(config.width, config.grid), persistent=False)
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

    def __init__(self, encoder: ViTConfig, config: DecoderConfig) -> None:
        super().__init__()
        self.in_norm = nn.LayerNorm(encoder.width, eps=_EPS)
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("pos_embed", _positions(config.width, encoder.grid), persistent=False)
        self.blocks = nn.ModuleList(
            Layer(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.pred = nn.Linear(config.width, encoder.channels * encoder.patch**2)

    def forward(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        x = self.embed(self.in_norm(x))
        mask_tokens = self.mask_token.repeat(len(x), ids_restore.shape[1] + 1 - x.shape[1], 1)
        tokens = torch.cat([x[:, 1:], mask_tokens.to(x.dtype)], dim=1)
        tokens = torch.gather(tokens, 1, ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.pos_embed
        for layer in self.blocks:
            x = layer(x)
        return self.pred(self.norm(x))[:, 1:]


class Network(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.encoder = Encoder(form.encoder)
        self.heads = nn.ModuleList(Decoder(form.encoder, form.decoder) for _ in form.taps)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)

    def noise(self, num_images: int) -> Tensor:
        return torch.rand(num_images, self.encoder.pos_embed.shape[1] - 1, device=self.mean.device)

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

    def patchify(self, images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        p = self.form.encoder.patch
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
