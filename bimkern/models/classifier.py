"""A classifier on an encoder: its patch tokens are averaged, normalized, and mapped to a logit for each class.

Shapes: B images, C channels, H W pixels, R prefix tokens, N tokens of patches, D width, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from bimkern.models.encoder import EncoderConfig, NormalizesOtherwise, WholeImages
from bimkern.models.layers import LAYER_NORM_EPS, LayerNorm, Linear
from bimkern.models.pos_embed import Positions

_INIT_STD = 2e-5


class Classifier(nn.Module):
    """An encoder with a norm and a linear layer behind it; prefix tokens are left out of the mean.

    Source: He et al. 2022 (MAE), fine-tuning program: mean, new norm, and a linear layer that begins near zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: EncoderConfig,
        num_classes: int,
        *,
        norm_first: bool = False,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        """Build it with random weights.

        Args:
            encoder: what it stands on.
            num_classes: K.
            norm_first: whether every token is normalized, and then the mean is taken.
            mean, std: of every channel in [0, 1], by which images are normalized.
        """
        super().__init__()
        self.encoder: Any = encoder.module(encoder)
        self.norm_first = norm_first
        width = encoder.level(encoder.depth).width
        eps = encoder.norm_eps if isinstance(encoder, NormalizesOtherwise) else LAYER_NORM_EPS
        self.norm = LayerNorm(width, eps)
        self.head = Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=_INIT_STD)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] float32 of images [B, C, H, W], uint8 or normalized floats."""
        config: EncoderConfig = self.encoder.config
        view = WholeImages(config.level(0).grid(*images.shape[2:]))
        statistics = () if images.is_floating_point() else (self.mean, self.std)
        tokens = self.encoder.embed(images, *statistics)
        for layer in range(config.depth):
            tokens = self.encoder.run_layer(layer, tokens, view)
        patches = tokens[:, config.num_prefix :]  # [B, N, D]
        pooled = self.norm(patches).mean(dim=1) if self.norm_first else self.norm(patches.mean(dim=1))
        logits: Tensor = self.head(pooled)
        return logits.float()

    def loss(self, images: Tensor, targets: Tensor, denominator: int) -> Tensor:
        """Return the cross entropy of images, summed and divided; targets are labels [B], or shares of them [B, K]."""
        logits = self(images)
        if targets.dim() == 1:
            return cross_entropy(logits, targets, reduction="sum") / denominator
        return -(targets * log_softmax(logits, dim=1)).sum() / denominator

    def normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images [B, C, H, W] as normalized floats."""
        mean, std = (values[:, None, None] for values in (self.mean, self.std))
        return (images.to(mean.dtype) / 255 - mean) / std

    def train_positions(self) -> None:
        """Make the position tables of the encoder parameters that begin with their values now."""
        for module in self.encoder.modules():
            if isinstance(module, Positions):
                module.train_table(like=self.head.weight)
