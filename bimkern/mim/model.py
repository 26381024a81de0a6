"""A masked-image-modelling method as data, and the network that it describes.

Shapes: B images, C channels, H W pixels, N patches, K kept patches, R prefix tokens, D width, P values a patch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.mask_embedding import HIDING
from bimkern.mim.masking.blockwise import Blockwise
from bimkern.mim.masking.random import RandomDrop, StageView
from bimkern.mim.masking.units import BlockPixels, TokenReplace
from bimkern.mim.schedule import Unit
from bimkern.mim.targets import Colors, Distillation, HogTarget, PixelTarget, StageTarget, hog_vectors
from bimkern.models.heads import DecoderConfig, LinearConfig, Prediction
from bimkern.models.layers import Linear
from bimkern.models.teacher import Teacher, TeacherError
from bimkern.models.vit import ViT, ViTConfig
from bimkern.ops import masked_loss

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
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        depth, num_stages = self.encoder.depth, len(self.taps)
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or self.taps[-1] != depth - 1:
            raise ValueError(f"Method: taps must rise and end at the last block, {depth - 1}, got {self.taps}")
        for name, pieces in (("heads", self.heads), ("targets", self.targets)):
            if len(pieces) not in (1, num_stages):
                raise ValueError(f"Method: {name} must hold 1 or {num_stages} pieces, got {len(pieces)}")
        if self.masker.hiding == "drop" and any(isinstance(head, LinearConfig) for head in self.heads):
            raise ValueError("Method: a LinearConfig head cannot predict patches that never enter the encoder")
        if self.distillation is not None:
            if self.masker.hiding == "drop":
                raise ValueError("Method: features of patches that never enter the encoder cannot be learnt")
            if len(self.distillation.blocks) != num_stages:
                got = len(self.distillation.blocks)
                raise ValueError(f"Method: distillation must name {num_stages} blocks of the teacher, got {got}")
        self.masker.entering(self.encoder.grid, num_stages)
        for stage in range(num_stages):
            scale = self.head(stage).scale
            self.target(stage).length(self.encoder.channels, self.encoder.patch, scale)
            if any(patches * scale % 1 for patches in self.encoder.grid):
                rows, columns = self.encoder.grid
                raise ValueError(
                    f"Method: image_size={self.encoder.image_size} with patch={self.encoder.patch} makes {rows} x "
                    f"{columns} patches, which head {stage} cannot predict at scale {scale}"
                )

    def head(self, stage: int) -> HeadConfig:
        return self.heads[stage if len(self.heads) > 1 else 0]

    def target(self, stage: int) -> PixelTarget | HogTarget:
        return self.targets[stage if len(self.targets) > 1 else 0]


class MIM(nn.Module):
    """An encoder in stages, a head for every stage, and the masks and targets between them."""

    mean: Tensor
    std: Tensor

    def __init__(self, method: Method, teacher: Teacher | None = None) -> None:
        """Build the network that a method describes; the teacher is needed where it distills."""
        super().__init__()
        self.method, self.teacher = method, teacher
        config = method.encoder
        self.encoder = ViT(config)
        self.hiding = HIDING[method.masker.hiding](config)
        self.heads = nn.ModuleList(self._build_head(stage) for stage in range(len(method.taps)))
        if method.distillation is not None:
            width = _checked(teacher, method).config.width
            self.projections = nn.ModuleList(Linear(config.width, width) for _ in method.taps)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

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

    @property
    def colors(self) -> Colors:
        """What images are normalised by, in the dtype of the parameters."""
        return Colors(self.mean, self.std)

    def views(self, images: Tensor, draw_ids: Tensor, seed: int) -> list[StageView]:
        """Draw what every stage sees of images [B, C, H, W], of whom draw_ids [B], int64, name sample and epoch."""
        views = self.method.masker.views(draw_ids, self.encoder.grid(images), self.num_stages, seed)
        return [view.weighted(self.mean.dtype) for view in views]

    def stage_blocks(self, stage: int) -> range:
        """Return the numbers of a stage's blocks, 0-based."""
        return range(self.method.taps[stage - 1] + 1 if stage else 0, self.method.taps[stage] + 1)

    def units(self) -> dict[str, Unit]:
        """Number the units that a schedule may treat one by one, for every parameter by name.

        Unit 0 is the embedding with the cls token, unit i block i, counted from 1; a head has the number of the block
        that it reads.
        """
        units = {name: Unit(0) for name, _ in self.named_parameters()}
        for i, block in enumerate(self.encoder.blocks):
            units |= {name: Unit(i + 1) for name, _ in block.named_parameters(prefix=f"encoder.blocks.{i}")}
        for k, tap in enumerate(self.method.taps):
            readers = (f"heads.{k}.", f"projections.{k}.")
            units |= {name: Unit(tap + 1, head=True) for name in units if name.startswith(readers)}
        return units

    def stage_parameters(self, stage: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the named parameters that stage trains: its blocks, its head, and the embedding for stage 0."""
        units = self.units()
        mine = {1 + block for block in self.stage_blocks(stage)} | ({0} if stage == 0 else set())
        return ((name, p) for name, p in self.named_parameters() if units[name].number in mine)

    def is_frozen(self, stage: int, frozen_units: int) -> bool:
        """Tell whether nothing of a stage learns any more: its last block, with its head, is among the frozen units."""
        return self.method.taps[stage] + 1 < frozen_units

    def encode(self, stage: int, inputs: Tensor, view: StageView, frozen_units: int = 0) -> Tensor:
        """Run a stage on what the stage before put out, or on uint8 images for stage 0: [B, R+T, D].

        The first frozen_units units run without gradient, and nothing is kept for them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and (stage > 0 or frozen_units == 0)):
            if stage == 0:
                tokens = self.hiding(self.encoder, inputs, view, self.mean, self.std)
            else:
                tokens = view.enter(inputs, self.encoder.num_prefix)
        for block in self.stage_blocks(stage):
            with torch.set_grad_enabled(torch.is_grad_enabled() and block + 1 >= frozen_units):
                tokens = self.encoder.blocks[block](tokens)
        return tokens

    def targets(self, stages: Sequence[int], images: Tensor) -> dict[int, StageTarget]:
        """Compute for some stages, by stage, what costs less together; the rest loss() reads from the images."""
        families: dict[HogTarget, dict[int, HogTarget]] = {}
        for stage in stages:
            target = self.method.target(stage)
            if isinstance(target, HogTarget):
                families.setdefault(target.family, {})[stage] = target
        vectors: dict[int, Tensor] = {}
        for members in families.values():
            scales = [self.method.head(stage).scale for stage in members]
            patch = self.method.encoder.patch
            found = hog_vectors(list(members.values()), images, patch, scales, self.colors)
            vectors |= {stage: target.to(self.mean.dtype) for stage, target in zip(members, found, strict=True)}
        features: dict[int, Tensor] = {}
        if self.teacher is not None and self.method.distillation is not None:
            blocks = [self.method.distillation.blocks[stage] for stage in stages]
            found = self.teacher.features(images, blocks, self.mean, self.std)
            features = {stage: target.to(self.mean.dtype) for stage, target in zip(stages, found, strict=True)}
        return {stage: StageTarget(vectors.get(stage), features.get(stage)) for stage in stages}

    def predict(self, stage: int, tokens: Tensor, view: StageView) -> Tensor:
        """Predict every cell from the tokens [B, R+T, D] of a stage: [B, M, P]."""
        return self.heads[stage](view.show(tokens, self.encoder.num_prefix), view.decoded, view.grid)

    def loss(
        self, stage: int, tokens: Tensor, images: Tensor, view: StageView, target: StageTarget, denominator: Tensor
    ) -> Tensor:
        """Compute the error of a stage's predictions on hidden cells, summed by weight, over denominator.

        Args:
            stage: k.
            tokens: [B, R+T, D], what it put out.
            images: [B, C, H, W] uint8.
            view: what it saw.
            target: as targets() computed it.
            denominator: the loss weights of all images of the step, summed over their patches.
        """
        head: Any = self.heads[stage]  # a Head; ModuleList does not say
        config, wanted = self.method.head(stage), self.method.target(stage)
        features = head.features(view.show(tokens, self.encoder.num_prefix), view.decoded, view.grid)
        patch, cells = self.method.encoder.patch, denominator * config.scale**2
        if isinstance(wanted, PixelTarget) and isinstance(head.pred, Prediction):
            loss = wanted.loss(head.pred(features), images, view.hidden, patch, self.colors, cells)
        else:
            vectors = target.vectors
            if vectors is None:
                vectors = wanted.vectors(images, patch, config.scale, self.colors)
            loss = head.pred.loss(features, vectors, view.hidden, view.grid, cells, wanted.kind)
        if target.features is not None and self.method.distillation is not None:
            projected = self.projections[stage](tokens[:, self.encoder.num_prefix :])
            learnt = masked_loss(projected, target.features, view.hidden, "l1", denominator=denominator)
            loss = loss + self.method.distillation.weight * learnt
        return loss


def _checked(teacher: Teacher | None, method: Method) -> Teacher:
    """Make sure that there is a teacher whose patches are the student's, and that it has the blocks asked for."""
    assert method.distillation is not None
    if teacher is None:
        raise TeacherError("this method learns from a teacher; name an exported backbone")
    patch, depth = method.encoder.patch, teacher.config.depth
    if teacher.config.patch != patch:
        raise TeacherError(f"the teacher's patches must be those of the student, {patch}, got {teacher.config.patch}")
    if not all(0 <= block < depth for block in method.distillation.blocks):
        raise TeacherError(f"the teacher must have the blocks {method.distillation.blocks}, it has {depth}")
    return teacher
