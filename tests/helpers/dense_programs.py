"""The networks of detectron2's ViTDet and of mmpretrain as far as exported weights go: their names, and what they do.

Written after their published structure; images have the size of pre-training, so no position table is resized.

Shapes: B images, T tokens, D width, H W rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, bias=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class ViTDet(nn.Module):
    """`backbone.net` of ViTDet: no class token, though its position is stored, and no last norm."""

    class Block(nn.Module):
        def __init__(self, width, num_heads, mlp_ratio):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.attn = Attention(width, num_heads)
            self.mlp = nn.Module()
            self.mlp.fc1 = nn.Linear(width, int(width * mlp_ratio))
            self.mlp.fc2 = nn.Linear(int(width * mlp_ratio), width)

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))

    def __init__(self, *, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, pretrain_img_size):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, (pretrain_img_size // patch_size) ** 2 + 1, embed_dim))
        self.blocks = nn.ModuleList(self.Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).mT + self.pos_embed[:, 1:]
        for block in self.blocks:
            x = block(x)
        return x


def _ffn(width, inner):
    ffn = nn.Module()
    ffn.layers = nn.Sequential(
        nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Dropout(0)), nn.Linear(inner, width), nn.Dropout(0)
    )
    return ffn


class VisionTransformer(nn.Module):
    """mmpretrain's, with all tokens behind the last norm."""

    class Layer(nn.Module):
        def __init__(self, width, num_heads, inner):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.attn, self.ffn = Attention(width, num_heads), _ffn(width, inner)

        def forward(self, x):
            x = x + self.attn(self.ln1(x))
            return x + self.ffn.layers(self.ln2(x))

    def __init__(self, *, arch, img_size, patch_size, in_channels):
        super().__init__()
        width = arch["embed_dims"]
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (img_size // patch_size) ** 2, width))
        self.layers = nn.ModuleList(
            self.Layer(width, arch["num_heads"], arch["feedforward_channels"]) for _ in range(arch["num_layers"])
        )
        self.ln1 = nn.LayerNorm(width, 1e-6)

    def forward(self, images):
        x = self.patch_embed.projection(images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        return self.ln1(x)


class WindowAttention(Attention):
    def __init__(self, width, num_heads, window):
        super().__init__(width, num_heads)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        steps = (torch.arange(window)[:, None] * (2 * window - 1) + torch.arange(window)).reshape(1, -1)
        self.register_buffer("relative_position_index", (steps + steps.T).flip(1).contiguous())

    def forward(self, x, mask):
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return super().forward(x, bias if mask is None else bias + mask[:, None])


class SwinTransformer(nn.Module):
    """mmpretrain's, with the tokens of the last stage behind its norm; windows divide every stage."""

    class Block(nn.Module):
        def __init__(self, width, num_heads, window, ffn_ratio, shift):
            super().__init__()
            self.window, self.shift = window, shift
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = nn.Module()
            self.attn.w_msa = WindowAttention(width, num_heads, window)
            self.ffn = _ffn(width, int(width * ffn_ratio))

        def windows(self, x):
            """Cut [B, H, W, D] into windows, [B * H * W / window^2, window^2, D]."""
            rows, columns = x.shape[1] // self.window, x.shape[2] // self.window
            x = x.unflatten(2, (columns, self.window)).unflatten(1, (rows, self.window))
            return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)

        def forward(self, x, size):
            shift = self.shift if min(size) > self.window else 0
            moved = self.norm1(x).unflatten(1, size).roll((-shift, -shift), (1, 2))
            mask = None
            if shift:
                bounds = [(0, -self.window), (-self.window, -shift), (-shift, None)]
                parts = torch.zeros(1, *size, 1)
                for i, rows in enumerate(bounds):
                    for j, columns in enumerate(bounds):
                        parts[:, slice(*rows), slice(*columns)] = 3 * i + j
                part = self.windows(parts)[..., 0]
                apart = part[:, :, None] != part[:, None]
                mask = torch.where(apart, -100.0, 0.0).repeat(len(x), 1, 1)
            windows = self.attn.w_msa(self.windows(moved), mask)
            grid = (size[0] // self.window, size[1] // self.window)
            windows = windows.unflatten(1, (self.window,) * 2).unflatten(0, (len(x), *grid)).transpose(2, 3)
            x = x + windows.flatten(3, 4).flatten(1, 2).roll((shift, shift), (1, 2)).flatten(1, 2)
            return x + self.ffn.layers(self.norm2(x))

    class Merging(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

        def forward(self, x, size):
            return self.reduction(self.norm(F.unfold(x.mT.unflatten(2, size), 2, stride=2).mT))

    def __init__(self, *, arch, img_size, patch_size, in_channels, window_size, stage_cfgs):
        super().__init__()
        ratio, width = stage_cfgs["block_cfgs"]["ffn_ratio"], arch["embed_dims"]
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.patch_embed.norm = nn.LayerNorm(width)
        self.size = (img_size // patch_size,) * 2
        self.stages = nn.ModuleList()
        for i, (depth, num_heads) in enumerate(zip(arch["depths"], arch["num_heads"], strict=True)):
            stage = nn.Module()
            stage.blocks = nn.ModuleList(
                self.Block(width * 2**i, num_heads, window_size, ratio, j % 2 * (window_size // 2))
                for j in range(depth)
            )
            stage.downsample = self.Merging(width * 2**i) if i + 1 < len(arch["depths"]) else None
            self.stages.append(stage)
        self.add_module(f"norm{i}", nn.LayerNorm(width * 2**i))

    def forward(self, images):
        x, size = self.patch_embed.norm(self.patch_embed.projection(images).flatten(2).mT), self.size
        for stage in self.stages:
            for block in stage.blocks:
                x = block(x, size)
            if stage.downsample is not None:
                x, size = stage.downsample(x, size), (size[0] // 2, size[1] // 2)
        return self.get_submodule(f"norm{len(self.stages) - 1}")(x)
