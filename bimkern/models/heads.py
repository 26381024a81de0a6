"""Heads: from the tokens after a layer of the encoder to a prediction.

Shapes: B images, N tokens, K shown tokens, C chosen tokens, R prefix tokens, D width of the encoder, W width of the
features that are decoded, P values predicted a cell, M cells: N times the square of the head's scale.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from bimkern import pieces
from bimkern.models.encoder import Grid
from bimkern.models.layers import CrossLayer, LayerNorm, Linear, TransformerLayer, init_linear
from bimkern.models.pos_embed import SinCosPositions
from bimkern.nn import MatchHead
from bimkern.ops import gather_tokens, restore_tokens
from bimkern.ops.match import SCALES


class Head(Protocol):
    """A module that decodes tokens in two steps: features of every patch, then what is predicted from them."""

    in_norm: nn.Module  # the encoder's last norm, with which a head begins
    pred: "Prediction | MatchHead"

    @property
    def layers(self) -> Iterable[nn.Module]:
        """What --compile compiles, one by one."""

    def features(self, tokens: Tensor, decoded: Tensor | None, grid: Grid) -> Tensor:
        """Decode the tokens [B, R+K, D] of the patches decoded [B, K], or of all for None: [B, N, W]."""

    def __call__(self, tokens: Tensor, decoded: Tensor | None, grid: Grid) -> Tensor:
        """Predict every cell, [B, M, P]."""


class PartialHead(Head, Protocol):
    """A head that can decode some of the masked tokens alone."""

    def chosen_features(self, tokens: Tensor, decoded: Tensor, chosen: Tensor, grid: Grid) -> Tensor:
        """Decode the masked tokens chosen [B, C], given the tokens [B, R+K, D] of the patches decoded: [B, C, W]."""


@runtime_checkable
class DecodesPartly(Protocol):
    """The numbers of a head that may be a PartialHead."""

    @property
    def share(self) -> float:
        """Share of the masked tokens that are decoded in training, drawn for every image; 1: all."""

    @property
    def attends(self) -> "Attends":
        """What a masked token attends to: all that is decoded, or the visible tokens."""


@runtime_checkable
class SkipsVisible(Protocol):
    """The numbers of a head that may be a PartialHead whose last layer need not compute visible tokens."""

    @property
    def skips_visible(self) -> bool:
        """Whether all masked tokens, and no others, are chosen in training."""


class HeadConfig(Protocol):
    """The numbers of a head; a frozen dataclass."""

    @property
    def scale(self) -> float:
        """Scale of the predicted grid, against that of the tokens."""

    @property
    def restores(self) -> bool:
        """Whether it can predict patches that did not enter the encoder."""

    def build(self, *, in_width: int, out_length: int, num_prefix: int, restores: bool) -> Any:
        """Build a Head, an nn.Module.

        Args:
            in_width: D.
            out_length: P.
            num_prefix: R.
            restores: whether the masked patches are left out of its tokens.
        """


Attends = Literal["all", "visible"]


class Prediction(Linear):
    """One linear layer for every token; called as MatchHead is."""

    def forward(self, features: Tensor, grid: Grid | None = None) -> Tensor:
        return super().forward(features)


@pieces.register(HeadConfig)
@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder of transformer layers over all tokens; its features may be rescaled before they are read.

    Source: He et al. 2022 (MAE), section 4.1 and table 1: 8 layers, 512 wide, whatever the encoder; Wang et al. 2023
    (LocalMIM), section 3.2, for scales; Guo et al. 2022 (FastMIM), section 3, for none of its own positions.
    """

    width: int = 512
    depth: int = 8
    num_heads: int = 16
    mlp_ratio: float = 4.0
    positions: bool = True
    match_scale: float | None = None  # of the grid that is predicted, against the tokens'; None: a linear prediction
    share: float = 1.0  # of the masked tokens that are decoded and learned from, drawn for every image and stage
    attends: Attends = "all"  # visible: masked tokens attend to visible ones alone, which stay as they are
    restores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("depth", 0), ("num_heads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"DecoderConfig: {name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.mlp_ratio < math.inf:
            raise ValueError(f"DecoderConfig: mlp_ratio must be above 0 and finite, got {self.mlp_ratio}")
        if self.width % self.num_heads:
            raise ValueError(f"DecoderConfig: width must be a multiple of num_heads={self.num_heads}, got {self.width}")
        if not 0 < self.share <= 1:
            raise ValueError(f"DecoderConfig: share must be in (0, 1], got {self.share}")
        if self.attends not in get_args(Attends):
            raise ValueError(f"DecoderConfig: attends must be all or visible, got {self.attends!r}")
        if self.scale < 1 and (self.share < 1 or self.attends == "visible"):
            raise ValueError(
                "DecoderConfig: a match_scale of 0.5 reads all tokens; leave share at 1 and attends at all"
            )
        if self.scale not in SCALES:
            raise ValueError(f"DecoderConfig: match_scale must be one of 4, 2, 1, 0.5, got {self.match_scale}")

    @property
    def scale(self) -> float:
        return 1.0 if self.match_scale is None else self.match_scale

    @property
    def skips_visible(self) -> bool:
        return self.share == 1 and self.attends == "all" and self.scale >= 1

    def build(self, *, in_width: int, out_length: int, num_prefix: int, restores: bool) -> "TransformerDecoder":
        return TransformerDecoder(
            self, in_width=in_width, out_length=out_length, num_prefix=num_prefix, restores=restores
        )


@pieces.register(HeadConfig)
@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """A norm and a linear layer, for encoders that all tokens pass.

    Source: Xie et al. 2022 (SimMIM), section 3.3: a 1 x 1 convolution and pixel shuffle; Wei et al. 2022 (MaskFeat).
    """

    init_std: float = 0.02
    restores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.init_std < math.inf:
            raise ValueError(f"LinearConfig: init_std must be at least 0 and finite, got {self.init_std}")

    @property
    def scale(self) -> float:
        return 1.0

    def build(self, *, in_width: int, out_length: int, num_prefix: int, restores: bool) -> "LinearHead":
        assert not restores  # Method has checked it
        return LinearHead(self, in_width=in_width, out_length=out_length, num_prefix=num_prefix)


class TransformerDecoder(nn.Module):
    """The encoder's last norm, a projection, transformer layers over all tokens, and the prediction.

    Source: He et al. 2022 (MAE), section 3 "MAE decoder"; Luo et al. 2023 (BIM), section 3.2: one for every stage.
    """

    pred: Prediction | MatchHead

    def __init__(
        self, config: DecoderConfig, *, in_width: int, out_length: int, num_prefix: int, restores: bool = True
    ) -> None:
        super().__init__()
        self.num_prefix, self.share = num_prefix, config.share
        self.in_norm = LayerNorm(in_width)
        self.embed = Linear(in_width, config.width)
        if restores:
            self.mask_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        layer = TransformerLayer if config.attends == "all" else CrossLayer
        self.blocks = nn.ModuleList(
            layer(config.width, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.context_norm = LayerNorm(config.width) if config.attends == "visible" else None
        self.norm = LayerNorm(config.width)
        if config.match_scale is None:
            self.pred = Prediction(config.width, out_length)
        else:
            self.pred = MatchHead(config.width, out_length, config.match_scale)
        self.positions = SinCosPositions(config.width) if config.positions else None
        self.apply(init_linear)

    @property
    def layers(self) -> nn.ModuleList:
        return self.blocks

    def features(self, tokens: Tensor, decoded: Tensor | None, grid: Grid) -> Tensor:
        x = self._filled(tokens, decoded, grid)
        for layer in self.blocks:
            x = layer(x)
        return self.norm(x)[:, self.num_prefix :]

    def _filled(self, tokens: Tensor, decoded: Tensor | None, grid: Grid) -> Tensor:
        """Return what enters the first layer, [B, R+N, W]: mask tokens fill in what is not decoded."""
        x = self.embed(self.in_norm(tokens)).to(self.norm.weight.dtype)
        pos = None if self.positions is None else self.positions(grid, x)
        if decoded is not None:
            token, num_tokens = self.mask_token.flatten(), grid[0] * grid[1]
            return restore_tokens(x, decoded, token, pos, num_tokens=num_tokens, num_prefix=self.num_prefix)
        return x if pos is None else torch.cat([x[:, : self.num_prefix], x[:, self.num_prefix :] + pos], dim=1)

    def _last(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Run the layers on tokens [B, T, W], the last one for the chosen [B, C] of them alone: [B, C, W]."""
        layers = list(self.blocks)  # a slice would be a new module
        for layer in layers[:-1]:
            x = layer(x)
        some = gather_tokens(x, chosen)
        return self.norm(layers[-1](some, x) if layers else some)

    def chosen_features(self, tokens: Tensor, decoded: Tensor, chosen: Tensor, grid: Grid) -> Tensor:
        if self.context_norm is None and self.share == 1:  # all that is masked
            return self._last(self._filled(tokens, decoded, grid), chosen + self.num_prefix)
        x = self.embed(self.in_norm(tokens)).to(self.norm.weight.dtype)
        masked = self.mask_token.to(x.dtype).expand(*chosen.shape, -1)
        if self.positions is not None:
            pos = self.positions(grid, x)
            prefix, shown = x[:, : self.num_prefix], x[:, self.num_prefix :]
            x, masked = torch.cat([prefix, shown + pos[decoded]], dim=1), masked + pos[chosen]
        if self.context_norm is None:
            behind = torch.arange(x.shape[1], x.shape[1] + chosen.shape[1], device=chosen.device)
            return self._last(torch.cat([x, masked], dim=1), behind.expand(len(x), -1))
        context = self.context_norm(x)
        for layer in self.blocks:
            masked = layer(masked, context)
        return self.norm(masked)

    def forward(self, tokens: Tensor, decoded: Tensor | None, grid: Grid) -> Tensor:
        return self.pred(self.features(tokens, decoded, grid), grid)


class LinearHead(nn.Module):
    """The encoder's last norm and a linear prediction."""

    layers: ClassVar[tuple[nn.Module, ...]] = ()

    def __init__(self, config: LinearConfig, *, in_width: int, out_length: int, num_prefix: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.in_norm = LayerNorm(in_width)
        self.pred = Prediction(in_width, out_length)
        nn.init.trunc_normal_(self.pred.weight, std=config.init_std)
        nn.init.zeros_(self.pred.bias)

    def features(self, tokens: Tensor, decoded: Tensor | None, grid: Grid) -> Tensor:
        assert decoded is None
        return self.in_norm(tokens)[:, self.num_prefix :]

    def forward(self, tokens: Tensor, decoded: Tensor | None, grid: Grid) -> Tensor:
        return self.pred(self.features(tokens, decoded, grid), grid)
