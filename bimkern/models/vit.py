"""The Vision Transformer encoder, cut into stages.

Shapes: B images, C channels, H W pixels, N patches, K kept patches, D width; one prefix token (cls).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bimkern.models.layers import Block, PatchEmbed, init_linear
from bimkern.models.pos_embed import SinCosPositions


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Size of a Vision Transformer.

    Source: Dosovitskiy et al. 2021 (ViT), table 1.
    """

    width: int
    depth: int
    num_heads: int
    patch: int = 16
    image_size: int = 224
    channels: int = 3
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "num_heads", "patch", "image_size", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"ViTConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.image_size % self.patch:
            raise ValueError(f"ViTConfig: image_size must be a multiple of patch={self.patch}, got {self.image_size}")
        if self.width % self.num_heads:
            raise ValueError(f"ViTConfig: width must be a multiple of num_heads={self.num_heads}, got {self.width}")

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch
        return side, side


class ViT(nn.Module):
    """A ViT with fixed sin-cos positions and a cls token; parameter names are those of MAE and timm.

    There is no final norm: each head brings its own.
    """

    num_prefix = 1

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.channels, config.width, config.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.positions = SinCosPositions(config.width)
        self.apply(init_linear)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches that images [B, C, H, W] are cut into."""
        return images.shape[2] // self.config.patch, images.shape[3] // self.config.patch

    def embed(self, images: Tensor, keep: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Embed the kept patches of images, with their positions, behind the cls token: [B, 1+K, D].

        Args:
            images: [B, C, H, W], uint8 or floating; any H and W that the patches divide.
            keep: [B, K], as for gather_tokens.
            mean, std: [C], to normalise with (uint8 first goes to [0, 1]); None where the images are already.
        """
        return self.patch_embed(images, keep, self.pos_embed(images), prefix=self.cls_token[0], mean=mean, std=std)

    def pos_embed(self, images: Tensor) -> Tensor:
        """Return the positions of the patches of images, [N, D]."""
        return self.positions(self.grid(images), self.cls_token)


# Dosovitskiy et al. 2021, table 1 (B, L, H); Touvron et al. 2021 (DeiT), table 1 (Ti, S).
VIT_TINY = ViTConfig(width=192, depth=12, num_heads=3)
VIT_SMALL = ViTConfig(width=384, depth=12, num_heads=6)
VIT_BASE = ViTConfig(width=768, depth=12, num_heads=12)
VIT_LARGE = ViTConfig(width=1024, depth=24, num_heads=16)
VIT_HUGE = ViTConfig(width=1280, depth=32, num_heads=16, patch=14)
