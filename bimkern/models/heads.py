"""Heads: how a tap of the encoder becomes a prediction.

Shapes: B images, N tokens, K kept tokens, R prefix tokens, D width of the encoder, P values predicted a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bimkern.models.layers import Block, LayerNorm, Linear, init_linear
from bimkern.models.pos_embed import sincos_table
from bimkern.ops import restore_tokens


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Size of an MAE decoder.

    Source: He et al. 2022 (MAE), section 4.1 and table 1: 8 blocks, 512 wide, whatever the encoder.
    """

    width: int = 512
    depth: int = 8
    num_heads: int = 16
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"DecoderConfig: width must be a multiple of num_heads={self.num_heads}, got {self.width}")


class MAEDecoder(nn.Module):
    """The encoder's last norm, a projection, transformer blocks over all tokens, and a linear prediction.

    Source: He et al. 2022 (MAE), section 3 "MAE decoder"; Luo et al. 2023 (BIM), section 3.2: one for every block.
    """

    pos_embed: Tensor  # [N, width]

    def __init__(
        self, config: DecoderConfig, *, in_width: int, out_length: int, grid: tuple[int, int], num_prefix: int
    ) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.in_norm = LayerNorm(in_width)
        self.embed = Linear(in_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = LayerNorm(config.width)
        self.pred = Linear(config.width, out_length)
        self.register_buffer("pos_embed", sincos_table(config.width, grid), persistent=False)
        self.apply(init_linear)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Predict [B, N, P] from the encoder's tokens [B, R+K, D] and the places keep [B, K] of the kept ones."""
        visible = self.embed(self.in_norm(tokens)).to(self.pos_embed.dtype)
        x = restore_tokens(
            visible,
            keep,
            self.mask_token.flatten(),
            self.pos_embed,
            num_tokens=len(self.pos_embed),
            num_prefix=self.num_prefix,
        )
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))[:, self.num_prefix :]
