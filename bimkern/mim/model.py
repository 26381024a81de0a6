"""A masked-image-modelling method as data, and the network that it describes.

Shapes: B images, C channels, H W pixels, N patches, K kept patches, R prefix tokens, D width, P values a patch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.masking import RandomDrop, StageView
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import DecoderConfig, MAEDecoder
from bimkern.models.layers import Block
from bimkern.models.vit import ViT, ViTConfig
from bimkern.ops import masked_loss

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Method:
    """The pieces of a method. Stage k is the encoder's blocks from tap k-1 to tap k, read by head k."""

    encoder: ViTConfig
    taps: tuple[int, ...]  # the last block of every stage, 0-based
    masker: RandomDrop
    head: DecoderConfig
    target: PixelTarget
    flow: EndToEnd | Local

    def __post_init__(self) -> None:
        depth = self.encoder.depth
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or self.taps[-1] != depth - 1:
            raise ValueError(f"Method: taps must rise and end at the last block, {depth - 1}, got {self.taps}")
        rows, columns = self.encoder.grid
        self.masker.counts(rows * columns, len(self.taps))


class MIM(nn.Module):
    """An encoder in stages, a head for every stage, and the masks and targets between them."""

    mean: Tensor
    std: Tensor

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        config = method.encoder
        self.encoder = ViT(config)
        self.heads = nn.ModuleList(
            MAEDecoder(
                method.head,
                in_width=config.width,
                out_length=method.target.length(config.channels, config.patch),
                grid=config.grid,
                num_prefix=self.encoder.num_prefix,
            )
            for _ in method.taps
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)

    @property
    def num_stages(self) -> int:
        return len(self.method.taps)

    def normalize(self, images: Tensor) -> Tensor:
        """Bring uint8 images [B, C, H, W] to zero mean and unit variance, in the dtype of the parameters."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def views(self, draw_ids: Tensor, seed: int) -> list[StageView]:
        """Draw what every stage sees of the samples draw_ids, [B] int64."""
        views = self.method.masker.views(draw_ids, self.encoder.num_tokens, self.num_stages, seed)
        return [view.weighted(self.mean.dtype) for view in views]

    def stage_blocks(self, stage: int) -> list[Block]:
        first = self.method.taps[stage - 1] + 1 if stage else 0
        return [self.encoder.blocks[i] for i in range(first, self.method.taps[stage] + 1)]  # type: ignore[misc]

    def stage_parameters(self, stage: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the named parameters that stage trains: its blocks, its head, and the embedding for stage 0."""
        owned = {id(p) for module in (*self.stage_blocks(stage), self.heads[stage]) for p in module.parameters()}
        if stage == 0:
            owned |= {id(self.encoder.cls_token)} | {id(p) for p in self.encoder.patch_embed.parameters()}
        return ((name, p) for name, p in self.named_parameters() if id(p) in owned)

    def encode(self, stage: int, inputs: Tensor, view: StageView) -> Tensor:
        """Run a stage on what the stage before put out, or on uint8 images for stage 0: [B, R+K, D]."""
        if stage == 0:
            tokens = self.encoder.embed(inputs, view.keep, self.mean.flatten(), self.std.flatten())
        else:
            tokens = view.enter(inputs, self.encoder.num_prefix)
        for block in self.stage_blocks(stage):
            tokens = block(tokens)
        return tokens

    def predict(self, stage: int, tokens: Tensor, view: StageView) -> Tensor:
        """Predict every patch from the tokens [B, R+K, D] of a stage: [B, N, P]."""
        return self.heads[stage](view.show(tokens, self.encoder.num_prefix), view.decoded)

    def loss(self, stage: int, tokens: Tensor, images: Tensor, view: StageView, denominator: Tensor) -> Tensor:
        """Compute the error of a stage's predictions on hidden patches, over denominator."""
        target = self.method.target(self.normalize(images), self.method.encoder.patch)
        return masked_loss(self.predict(stage, tokens, view), target, view.hidden, denominator=denominator)
