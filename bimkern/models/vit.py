"""The Vision Transformer encoder.

Shapes: B images, C channels, H W pixels, N patches, K kept patches, D width; one prefix token (cls).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bimkern import pieces
from bimkern.image_size import IMAGENET_SIZE, ImageSize
from bimkern.models.checks import check_counts, check_mlp_ratio, read_sizes
from bimkern.models.encoder import OWN_LAYOUT, EncoderConfig, Grid, Layout, Level, Program, View, Weights
from bimkern.models.layers import PatchEmbed, TransformerLayer, fill_masked, init_linear, layer_flops
from bimkern.models.pos_embed import WIDTH_UNIT, Positions, sincos_table, with_prefix

_TABLE = "positions.table"  # the name of a stored position table among the weights


class ViT(nn.Module):
    """A ViT with a cls token; parameter names are those of MAE and timm.

    Positions are sin-cos, unless weights with others are loaded, and fixed in pre-training. There is no final norm:
    each head brings its own.
    """

    num_prefix = 1

    def __init__(self, config: "ViTConfig") -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.channels, config.width, config.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            TransformerLayer(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.positions = Positions(config.width, config.grid, self.num_prefix)
        self.apply(init_linear)

    @property
    def layers(self) -> nn.ModuleList:
        return self.blocks

    def grid(self, images: Tensor) -> Grid:
        """Return the rows and columns of patches that images [B, C, H, W] are cut into."""
        return self.config.level(0).grid(*images.shape[2:])

    def pos_embed(self, images: Tensor) -> Tensor:
        """Return the positions of the patches of images, [N, D]."""
        return self.positions(self.grid(images), self.cls_token)

    def prefix(self) -> Tensor:
        """Return the prefix tokens with their positions, [R, D]."""
        positions = self.positions.prefix
        return self.cls_token[0] if positions is None else self.cls_token[0] + positions

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if f"{prefix}{_TABLE}" in state_dict:
            self.positions.expect_table(like=self.cls_token)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def embed(self, images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        rows, columns = self.grid(images)
        everything = torch.arange(rows * columns, device=images.device).expand(len(images), -1)
        return self.embed_visible(images, everything, mean, std)

    def embed_visible(
        self, images: Tensor, keep: Tensor, mean: Tensor | None = None, std: Tensor | None = None
    ) -> Tensor:
        return self.patch_embed(images, keep, self.pos_embed(images), prefix=self.prefix(), mean=mean, std=std)

    def embed_filled(self, images: Tensor, view: View, token: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        visible = self.patch_embed(images, view.keep, prefix=self.prefix(), mean=mean, std=std)  # [B, R+K, D]
        return fill_masked(visible, view, token.flatten(), self.pos_embed(images), num_prefix=self.num_prefix)

    def embed_painted(self, images: Tensor, view: View, color: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """A painted patch has the same embedding wherever it lies, so the image itself is never painted."""
        return self.embed_filled(images, view, self.patch_embed.painted(color), mean, std)

    def run_layer(self, layer: int, tokens: Tensor, view: View) -> Tensor:
        return self.blocks[layer](tokens)


@pieces.register(EncoderConfig)
@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Size of a Vision Transformer.

    Source: Dosovitskiy et al. 2021 (ViT), table 1.
    """

    width: int
    depth: int
    num_heads: int
    patch: int = 16
    image_size: ImageSize = IMAGENET_SIZE
    channels: int = 3
    mlp_ratio: float = 4.0
    module: ClassVar[type[ViT]] = ViT
    num_prefix: ClassVar[int] = ViT.num_prefix

    def __post_init__(self) -> None:
        check_counts(self, "width", "depth", "num_heads", "patch", "channels")
        read_sizes(self, "image_size")
        check_mlp_ratio(self, self.width)
        if not self.image_size.is_multiple(self.patch):
            raise ValueError(f"ViTConfig: image_size must be a multiple of patch={self.patch}, got {self.image_size}")
        if self.width % WIDTH_UNIT:
            raise ValueError(f"ViTConfig: width must be a multiple of {WIDTH_UNIT} for its positions, got {self.width}")
        if self.width % self.num_heads:
            raise ValueError(f"ViTConfig: width must be a multiple of num_heads={self.num_heads}, got {self.width}")

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches of an image of image_size."""
        return self.level(0).grid(*self.image_size)

    def level(self, num_layers: int) -> Level:
        return Level(self.width, self.patch)

    def layer_group(self, name: str) -> int:
        part, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) + 1 if part == "blocks" else 0

    def cut(self, depth: int) -> "ViTConfig":
        return replace(self, depth=depth)

    def resized(self, image_size: ImageSize) -> "ViTConfig":
        return replace(self, image_size=image_size)

    def embedding_flops(self, num_visible: int) -> int:
        return 2 * num_visible * self.width * self.channels * self.patch**2

    def layer_flops(self, layer: int, num_patches: int) -> int:
        return layer_flops(num_patches + self.num_prefix, self.width, int(self.width * self.mlp_ratio))

    def layout(self, program: Program) -> Layout:
        positions = with_prefix(sincos_table(self.width, self.grid))
        if program == "hf-vit-mae":
            return Layout(
                names=(
                    ("patch_embed.", "vit.embeddings.patch_embeddings.projection."),
                    ("blocks.", "vit.encoder.layer."),
                    (_TABLE, "vit.embeddings.position_embeddings"),
                    ("", "vit.embeddings."),
                ),
                norm="vit.layernorm.",
                tables={"vit.embeddings.position_embeddings": positions},
                settings={
                    "hidden_size": self.width,
                    "num_hidden_layers": self.depth,
                    "num_attention_heads": self.num_heads,
                    "intermediate_size": int(self.width * self.mlp_ratio),
                    "image_size": self.image_size.as_argument,
                    "patch_size": self.patch,
                    "num_channels": self.channels,
                },
            )
        sizes = {
            "patch_size": self.patch,
            "in_chans": self.channels,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
        }
        if program == "detectron2":
            return Layout(
                names=(
                    ("patch_embed.", "backbone.net.patch_embed.proj."),
                    (_TABLE, "backbone.net.pos_embed"),
                    ("", "backbone.net."),
                ),
                norm=None,
                tables={"backbone.net.pos_embed": positions},
                settings={**sizes, "pretrain_img_size": self.image_size.as_argument},
            )
        if program == "mmpretrain":
            return Layout(
                names=(("patch_embed.", "patch_embed.projection."), ("blocks.", "layers."), (_TABLE, "pos_embed")),
                norm="ln1.",
                tables={"pos_embed": positions},
                settings={
                    "type": "mmpretrain.VisionTransformer",
                    "arch": {
                        "embed_dims": self.width,
                        "num_layers": self.depth,
                        "num_heads": self.num_heads,
                        "feedforward_channels": int(self.width * self.mlp_ratio),
                    },
                    "img_size": self.image_size.as_argument,
                    "patch_size": self.patch,
                    "in_channels": self.channels,
                },
            )
        settings = {
            "architecture": "vit_base_patch16_224",  # any VisionTransformer: model_args give every size
            "num_features": self.width,
            "model_args": {
                **sizes,
                "img_size": self.image_size.as_argument,
                "fc_norm": False,  # else timm would drop the trained norm for a new one behind the pooling
            },
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        names = (("patch_embed.", "patch_embed.proj."), (_TABLE, "pos_embed"))
        return Layout(names=names, norm="norm.", tables={"pos_embed": positions}, settings=settings)

    def load(self, weights: Weights) -> ViT:
        """Build the encoder of a backbone in timm's layout, or under our own names; a position table in it is kept."""
        encoder, layout = ViT(self), self.layout("timm")
        if not layout.tables.keys() & weights.keys():
            layout = OWN_LAYOUT
        names = [*encoder.state_dict(), *([_TABLE] if layout.name(_TABLE) in weights else [])]
        encoder.load_state_dict({name: weights[layout.name(name)] for name in names})
        return encoder


# Dosovitskiy et al. 2021, table 1 (B, L, H); Touvron et al. 2021 (DeiT), table 1 (Ti, S).
VIT_TINY = ViTConfig(width=192, depth=12, num_heads=3)
VIT_SMALL = ViTConfig(width=384, depth=12, num_heads=6)
VIT_BASE = ViTConfig(width=768, depth=12, num_heads=12)
VIT_LARGE = ViTConfig(width=1024, depth=24, num_heads=16)
VIT_HUGE = ViTConfig(width=1280, depth=32, num_heads=16, patch=14)
