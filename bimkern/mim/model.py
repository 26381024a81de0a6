"""A masked-image-modelling method as data, and the network that it describes.

Shapes: B images, C channels, H W pixels, N patches, K kept patches, R prefix tokens, D width, P values a patch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.mim.blockwise import Blockwise
from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.hiding import HIDING
from bimkern.mim.masking import RandomDrop, StageView
from bimkern.mim.targets import HogTarget, PixelTarget, hog_vectors
from bimkern.mim.unit_masks import BlockPixels, TokenReplace
from bimkern.models.heads import DecoderConfig, LinearConfig
from bimkern.models.vit import ViT, ViTConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


HeadConfig = DecoderConfig | LinearConfig


@dataclass(frozen=True, kw_only=True)
class Method:
    """The pieces of a method. Stage k is the encoder's blocks from tap k-1 to tap k, read by head k."""

    encoder: ViTConfig
    taps: tuple[int, ...]  # the last block of every stage, 0-based
    masker: RandomDrop | TokenReplace | BlockPixels | Blockwise
    heads: tuple[HeadConfig, ...]  # one for every stage, or one for all
    targets: tuple[PixelTarget | HogTarget, ...]  # likewise
    flow: EndToEnd | Local

    def __post_init__(self) -> None:
        depth, num_stages = self.encoder.depth, len(self.taps)
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or self.taps[-1] != depth - 1:
            raise ValueError(f"Method: taps must rise and end at the last block, {depth - 1}, got {self.taps}")
        for name, pieces in (("heads", self.heads), ("targets", self.targets)):
            if len(pieces) not in (1, num_stages):
                raise ValueError(f"Method: {name} must hold 1 or {num_stages} pieces, got {len(pieces)}")
        if self.masker.hiding == "drop" and any(isinstance(head, LinearConfig) for head in self.heads):
            raise ValueError("Method: a LinearConfig head cannot predict patches that never enter the encoder")
        self.masker.entering(self.encoder.grid, num_stages)
        for stage in range(num_stages):
            self.target(stage).length(self.encoder.channels, self.encoder.patch, self.head(stage).scale)

    def head(self, stage: int) -> HeadConfig:
        return self.heads[stage if len(self.heads) > 1 else 0]

    def target(self, stage: int) -> PixelTarget | HogTarget:
        return self.targets[stage if len(self.targets) > 1 else 0]


class MIM(nn.Module):
    """An encoder in stages, a head for every stage, and the masks and targets between them."""

    mean: Tensor
    std: Tensor

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        config = method.encoder
        self.encoder = ViT(config)
        self.hiding = HIDING[method.masker.hiding](config)
        self.heads = nn.ModuleList(self._build_head(stage) for stage in range(len(method.taps)))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)

    def _build_head(self, stage: int) -> nn.Module:
        method, config = self.method, self.method.encoder
        head = method.head(stage)
        return head.build(
            in_width=config.width,
            out_length=method.target(stage).length(config.channels, config.patch, head.scale),
            num_prefix=self.encoder.num_prefix,
            restores=method.masker.hiding == "drop",
        )

    @property
    def num_stages(self) -> int:
        return len(self.method.taps)

    def normalize(self, images: Tensor) -> Tensor:
        """Bring uint8 images [B, C, H, W] to zero mean and unit variance, in the dtype of the parameters."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def views(self, images: Tensor, draw_ids: Tensor, seed: int) -> list[StageView]:
        """Draw what every stage sees of images [B, C, H, W], of whom draw_ids [B], int64, name sample and epoch."""
        views = self.method.masker.views(draw_ids, self.encoder.grid(images), self.num_stages, seed)
        return [view.weighted(self.mean.dtype) for view in views]

    def stage_blocks(self, stage: int) -> range:
        """Return the numbers of a stage's blocks, 0-based."""
        return range(self.method.taps[stage - 1] + 1 if stage else 0, self.method.taps[stage] + 1)

    def units(self) -> dict[str, int]:
        """Number the units that a schedule may treat one by one, for every parameter by name.

        Unit 0 is the embedding with the cls token, unit i block i, counted from 1; a head belongs to the block that it
        reads.
        """
        units = {name: 0 for name, _ in self.named_parameters()}
        for i, block in enumerate(self.encoder.blocks):
            units |= {name: i + 1 for name, _ in block.named_parameters(prefix=f"encoder.blocks.{i}")}
        for k, (head, tap) in enumerate(zip(self.heads, self.method.taps, strict=True)):
            units |= {name: tap + 1 for name, _ in head.named_parameters(prefix=f"heads.{k}")}
        return units

    def stage_parameters(self, stage: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the named parameters that stage trains: its blocks, its head, and the embedding for stage 0."""
        units = self.units()
        mine = {1 + block for block in self.stage_blocks(stage)} | ({0} if stage == 0 else set())
        return ((name, p) for name, p in self.named_parameters() if units[name] in mine)

    def is_frozen(self, stage: int, frozen_units: int) -> bool:
        """Tell whether nothing of a stage learns any more: its last block, with its head, is among the frozen units."""
        return self.method.taps[stage] + 1 < frozen_units

    def encode(self, stage: int, inputs: Tensor, view: StageView, frozen_units: int = 0) -> Tensor:
        """Run a stage on what the stage before put out, or on uint8 images for stage 0: [B, R+T, D].

        The first frozen_units units run without gradient, and nothing is kept for them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and (stage > 0 or frozen_units == 0)):
            if stage == 0:
                tokens = self.hiding(self.encoder, inputs, view, self.mean.flatten(), self.std.flatten())
            else:
                tokens = view.enter(inputs, self.encoder.num_prefix)
        for block in self.stage_blocks(stage):
            with torch.set_grad_enabled(torch.is_grad_enabled() and block + 1 >= frozen_units):
                tokens = self.encoder.blocks[block](tokens)
        return tokens

    def targets(self, stages: Sequence[int], images: Tensor) -> dict[int, Tensor]:
        """Compute the targets of stages that cost less together, by stage, [B, M, P]; loss() computes the others."""
        families: dict[HogTarget, dict[int, HogTarget]] = {}
        for stage in stages:
            target = self.method.target(stage)
            if isinstance(target, HogTarget):
                families.setdefault(target.family, {})[stage] = target
        found: dict[int, Tensor] = {}
        for members in families.values():
            scales = [self.method.head(stage).scale for stage in members]
            patch = self.method.encoder.patch
            vectors = hog_vectors(list(members.values()), images, patch, scales, self.normalize)
            found |= {stage: target.to(self.mean.dtype) for stage, target in zip(members, vectors, strict=True)}
        return found

    def predict(self, stage: int, tokens: Tensor, view: StageView) -> Tensor:
        """Predict every cell from the tokens [B, R+T, D] of a stage: [B, M, P]."""
        return self.heads[stage](view.show(tokens, self.encoder.num_prefix), view.decoded, view.grid)

    def loss(
        self,
        stage: int,
        tokens: Tensor,
        images: Tensor,
        view: StageView,
        denominator: Tensor,
        target: Tensor | None = None,
    ) -> Tensor:
        """Compute the error of a stage's predictions on hidden cells, summed by weight, over denominator.

        Args:
            stage: k.
            tokens: [B, R+T, D], what it put out.
            images: [B, C, H, W] uint8.
            view: what it saw.
            denominator: the loss weights of all images of the step, summed over their patches.
            target: [B, M, P], where targets() has computed it.
        """
        head: Any = self.heads[stage]  # a Head; ModuleList does not say
        config, wanted = self.method.head(stage), self.method.target(stage)
        features = head.features(view.show(tokens, self.encoder.num_prefix), view.decoded, view.grid)
        if target is None:
            target = wanted.vectors(images, self.method.encoder.patch, config.scale, self.normalize).to(self.mean.dtype)
        cells = denominator * config.scale**2
        return head.pred.loss(features, target, view.hidden, view.grid, cells, wanted.kind)
