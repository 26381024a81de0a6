"""A masked-image-modeling method as data, and the network that it describes.

Shapes: B images, C channels, H W pixels, N patches, K kept patches, R prefix tokens, T tokens, D width, M predicted
cells, P values of a cell, C chosen tokens.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from bimkern.mim import recompute
from bimkern.mim.batch_norms import BatchNorms
from bimkern.mim.flow import Flow
from bimkern.mim.masking.choice import choose, masked_ids
from bimkern.mim.masking.masker import Masker
from bimkern.mim.masking.view import StageView, on_device
from bimkern.mim.schedule import LayerGroup
from bimkern.mim.targets import Colors, Distillation, FusedTarget, JointTarget, StageTarget, Target
from bimkern.models.checks import size_of
from bimkern.models.encoder import EncoderConfig, Grid, Level, NormalizesOtherwise, PlansViews, ViewPlan, grid_after
from bimkern.models.heads import DecodesPartly, Head, HeadConfig, Prediction, SkipsVisible
from bimkern.models.layers import Linear
from bimkern.models.teacher import Teacher, TeacherError
from bimkern.ops import masked_loss, restore_tokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Method:
    """The pieces of a method. Stage k is the encoder's layers from tap k-1 to tap k, read by head k."""

    encoder: EncoderConfig
    taps: tuple[int, ...]  # the last layer of every stage, 0-based
    masker: Masker
    heads: tuple[HeadConfig, ...]  # one for every stage, or one for all
    targets: tuple[Target, ...]  # likewise
    flow: Flow
    distillation: Distillation | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN  # of every channel in [0, 1], by which images are normalized; likewise std
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        depth, num_stages, channels = self.encoder.depth, len(self.taps), self.encoder.channels
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(
                    f"Method: {name} must hold a value for each of the encoder's {channels} channels, got {values}; "
                    f"set channels, mean and std together"
                )
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"Method: std must be above 0 and finite, got {self.std}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"Method: mean must be finite, got {self.mean}")
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or self.taps[-1] != depth - 1:
            raise ValueError(f"Method: taps must rise and end at the last layer, {depth - 1}, got {self.taps}")
        for name, pieces in (("heads", self.heads), ("targets", self.targets)):
            if len(pieces) not in (1, num_stages):
                got = len(pieces)
                raise ValueError(f"Method: {name} must hold one piece, or one per stage ({num_stages}), got {got}")
        self._check_mask_embedding()
        if self.distillation is not None and len(self.distillation.layers) != num_stages:
            got = len(self.distillation.layers)
            raise ValueError(f"Method: distillation must name {num_stages} layers of the teacher, got {got}")
        size = size_of(self.encoder)
        self.masker.entering(self.encoder.level(0).grid(*size), num_stages)
        for stage in range(num_stages):
            scale, level = self.head(stage).scale, self.level(stage)
            self.target(stage).length(self.encoder.channels, level.patch, scale)
            rows, columns = level.grid(*size)
            if rows * scale % 1 or columns * scale % 1:
                raise ValueError(
                    f"Method: image_size={size} with patch={level.patch} makes {rows} x {columns} patches, "
                    f"which head {stage} cannot predict at scale {scale}"
                )

    def _check_mask_embedding(self) -> None:
        """Make sure that encoder and heads can work with what stands for masked patches."""
        embedding, masker, encoder = self.masker.mask_embedding, type(self.masker).__name__, self.encoder.module
        if not hasattr(encoder, embedding.needs):
            raise ValueError(
                f"Method: {masker} needs an encoder with {embedding.needs}(), which {encoder.__name__} has not"
            )
        if not embedding.drops:
            if any(map(decodes_partly, self.heads)):
                raise ValueError(
                    f"Method: {masker} lets all patches enter the encoder, and a head that decodes some of the masked "
                    f"ones needs a mask that leaves them out; set share to 1 and attends to all"
                )
            return
        for head in self.heads:
            if not head.restores:
                name = type(head).__name__
                raise ValueError(f"Method: a {name} head cannot predict patches that do not enter the encoder")
        if self.distillation is not None:
            raise ValueError("Method: features of patches that do not enter the encoder cannot be learned")
        merged = self.encoder.level(self.encoder.depth).patch // self.encoder.level(0).patch
        unit = getattr(self.masker, "mask_unit", 1)
        if unit % merged:
            raise ValueError(
                f"Method: {masker} leaves out mask units of {unit} x {unit} patches, but {encoder.__name__} merges "
                f"{merged} x {merged} of them into a token; take a masker whose mask_unit is a multiple of {merged}"
            )

    def head(self, stage: int) -> HeadConfig:
        return self.heads[stage if len(self.heads) > 1 else 0]

    def target(self, stage: int) -> Target:
        return self.targets[stage if len(self.targets) > 1 else 0]

    def level(self, stage: int) -> Level:
        """Describe the tokens that a stage puts out."""
        return self.encoder.level(self.taps[stage] + 1)

    def grid(self, stage: int, patches: Grid) -> Grid:
        """Return the grid of the tokens that a stage puts out, from that of the patches that are embedded."""
        return grid_after(self.encoder, self.taps[stage] + 1, patches)

    def layer_group(self, name: str) -> LayerGroup:
        """Return the layer group of a parameter or buffer of the network, by its name."""
        part, _, rest = name.partition(".")
        if part == "encoder":
            return LayerGroup(self.encoder.layer_group(rest))
        if part in ("heads", "projections"):
            return LayerGroup(self.taps[int(rest.partition(".")[0])] + 1, head=True)
        return LayerGroup(0)

    def stage_of(self, name: str) -> int:
        """Return which stage trains a parameter, or keeps a buffer, of this name."""
        number = self.layer_group(name).number
        return next(k for k, tap in enumerate(self.taps) if number <= tap + 1)

    def views(self, draw_ids: Tensor, grid: Grid, seed: int, *, whole: bool = False) -> list[StageView]:
        """Draw what every stage sees of the samples draw_ids [B], int64, whose images have a grid of patches.

        With whole, heads decode all that is masked, also where training decodes a share of it; and what is visible too,
        where they decode it at all.
        """
        drawn = self.masker.views(draw_ids, grid, len(self.taps), seed)
        views = [view.decoded_on(self.grid(stage, grid)) for stage, view in enumerate(drawn)]
        masked: dict[tuple[int, Grid], Tensor] = {}  # stages often share a mask
        for stage, view in enumerate(views):
            head, own = self.head(stage), self.grid(stage, grid)
            if not decodes_partly(head, whole=whole) and (whole or not self._skips_visible(head)):
                continue
            visible = num_visible(view, drawn)
            if decodes_partly(head, whole=whole):
                share = 1.0 if whole else head.share
                views[stage] = choose(view, own, share, draw_ids, visible=visible, stage=stage, seed=seed)
                continue
            key = id(view.masked), own
            if key not in masked:
                masked[key] = masked_ids(view, own, visible)
            views[stage] = replace(view, chosen=masked[key])
        return views

    def _skips_visible(self, head: HeadConfig) -> bool:
        """Return whether what a head makes of visible tokens is never computed in training."""
        return self.masker.mask_embedding.drops and isinstance(head, SkipsVisible) and head.skips_visible


class MIM(nn.Module):
    """An encoder in stages, a head for every stage, and the masks and targets between them."""

    mean: Tensor
    std: Tensor

    def __init__(self, method: Method, teacher: Teacher | None = None) -> None:
        """Build the network that a method describes; the teacher is needed where it distills."""
        super().__init__()
        self.method, self.teacher = method, teacher
        self.recompute = recompute.NONE  # which layers of the encoder run again in the backward pass
        config = method.encoder
        self.encoder: Any = config.module(config)
        self._norms = BatchNorms(self.encoder)
        self.mask_embedding = method.masker.mask_embedding(config)
        self.heads = nn.ModuleList(self._build_head(stage) for stage in range(len(method.taps)))
        if method.distillation is not None:
            theirs = _checked_levels(teacher, method)
            widths = ((method.level(stage).width, level.width) for stage, level in enumerate(theirs))
            self.projections = nn.ModuleList(Linear(*pair) for pair in widths)
        self.register_buffer("mean", torch.tensor(method.mean), persistent=False)
        self.register_buffer("std", torch.tensor(method.std), persistent=False)

    def _build_head(self, stage: int) -> nn.Module:
        method, config = self.method, self.method.encoder
        head, level = method.head(stage), method.level(stage)
        built: nn.Module = head.build(
            in_width=level.width,
            out_length=method.target(stage).length(config.channels, level.patch, head.scale),
            num_prefix=config.num_prefix,
            restores=method.masker.mask_embedding.drops,
        )
        if isinstance(config, NormalizesOtherwise):
            norm: Any = built.in_norm
            norm.eps = config.norm_eps
        return built

    @property
    def num_stages(self) -> int:
        return len(self.method.taps)

    @property
    def colors(self) -> Colors:
        """The statistics that normalize images, in the dtype of the parameters."""
        return Colors(self.mean, self.std)

    def views(self, images: Tensor, draw_ids: Tensor, seed: int, *, whole: bool = False) -> list[StageView]:
        """Draw what every stage sees of images [B, C, H, W] whose draw_ids [B], int64, name sample and epoch.

        With whole, heads decode all that is masked: to look at what was learned, rather than to learn.
        An encoder that plans does so on the host, before the device is asked for anything: draw_ids should be on the
        host, or this waits for the device.
        """
        grid = self.method.encoder.level(0).grid(*images.shape[2:])
        plans = self.mask_embedding.drops and isinstance(self.encoder, PlansViews)
        ids = draw_ids.to("cpu" if plans else images.device, non_blocking=not plans)
        views = [view.weighted(self.mean.dtype) for view in self.method.views(ids, grid, seed, whole=whole)]
        if plans:
            keeps = {id(view.keep): view.keep for view in views}
            made: dict[int, ViewPlan] = {key: self.encoder.plan(grid, keep) for key, keep in keeps.items()}
            views = [replace(view, plan=made[id(view.keep)]) for view in views]
        return on_device(views, images.device)

    def stage_layers(self, stage: int) -> range:
        """Return the numbers of a stage's layers, 0-based."""
        return range(self.method.taps[stage - 1] + 1 if stage else 0, self.method.taps[stage] + 1)

    def layer_groups(self) -> dict[str, LayerGroup]:
        """Return the layer group of every parameter, by its name.

        Group 0 is the embedding with prefix tokens and mask embedding, group i layer i, counted from 1; a head has the
        number of the layer that it reads.
        """
        return {name: self.method.layer_group(name) for name, _ in self.named_parameters()}

    def stage_parameters(self, stage: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the named parameters that stage trains: its layers, its head, and the embedding for stage 0."""
        return ((name, p) for name, p in self.named_parameters() if self.method.stage_of(name) == stage)

    def is_frozen(self, stage: int, frozen_groups: int) -> bool:
        """Return whether a stage has stopped learning: its last layer, with its head, is among the frozen groups."""
        return self.method.taps[stage] + 1 < frozen_groups

    def encode(self, stage: int, inputs: Tensor, view: StageView, frozen_groups: int = 0) -> Tensor:
        """Run a stage on what the stage before put out, or on uint8 images for stage 0: [B, R+T, D].

        The first frozen_groups layer groups run without gradient, and nothing is kept for them.
        """
        self._norms.freeze(frozen_groups, training=self.training)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (stage > 0 or frozen_groups == 0)):
            if stage == 0:
                tokens: Tensor = self.mask_embedding(self.encoder, inputs, view, self.mean, self.std)
            else:
                tokens = view.enter(inputs, self.method.encoder.num_prefix)

        def run(layers: Sequence[int], tokens: Tensor) -> Tensor:
            for layer in layers:
                with torch.set_grad_enabled(torch.is_grad_enabled() and layer + 1 >= frozen_groups):
                    tokens = self.encoder.run_layer(layer, tokens, view)
            return tokens

        for layers, again in recompute.parts(self.stage_layers(stage), self.recompute):
            learns = torch.is_grad_enabled() and layers[-1] + 1 >= frozen_groups
            if again and learns:
                tokens = recompute.run_again(run, layers, tokens, self._norms.uncounted)
            else:
                tokens = run(layers, tokens)
        return tokens

    def targets(self, stages: Sequence[int], images: Tensor) -> dict[int, StageTarget]:
        """Compute for some stages, by stage, what costs less together; the rest loss() reads from the images."""
        families: dict[tuple[type, Hashable, int], dict[int, JointTarget]] = {}
        for stage in stages:
            target = self.method.target(stage)
            if isinstance(target, JointTarget):
                key = type(target), target.family, self.method.level(stage).patch
                families.setdefault(key, {})[stage] = target
        vectors: dict[int, Tensor] = {}
        for (*_, patch), members in families.items():
            first, *_ = wanted = list(members.values())
            scales = [self.method.head(stage).scale for stage in members]
            found = first.joint_vectors(wanted, images, patch, scales, self.colors)
            vectors |= {stage: target.to(self.mean.dtype) for stage, target in zip(members, found, strict=True)}
        features: dict[int, Tensor] = {}
        if self.teacher is not None and self.method.distillation is not None:
            layers = [self.method.distillation.layers[stage] for stage in stages]
            found = self.teacher.features(images, layers, self.mean, self.std)
            features = {stage: target.to(self.mean.dtype) for stage, target in zip(stages, found, strict=True)}
        return {stage: StageTarget(vectors.get(stage), features.get(stage)) for stage in stages}

    def _head(self, stage: int) -> Head:
        head: Any = self.heads[stage]  # ModuleList does not say
        return head

    def predict(self, stage: int, tokens: Tensor, view: StageView) -> Tensor:
        """Predict every cell from the tokens [B, R+T, D] of a stage: [B, M, P]; zero where a head decodes none."""
        head, grid = self._head(stage), self.method.grid(stage, view.grid)
        features = self._features(stage, tokens, view)
        if isinstance(head.pred, Prediction):
            return _placed(head.pred(features), view, grid)
        return head.pred(_placed(features, view, grid), grid)

    def _features(self, stage: int, tokens: Tensor, view: StageView) -> Tensor:
        """Decode all tokens, [B, N, W], or those that the view has chosen, [B, C, W]."""
        head, grid = self._head(stage), self.method.grid(stage, view.grid)
        shown = view.show(tokens, self.method.encoder.num_prefix)
        if view.chosen is None:
            return head.features(shown, view.decoded, grid)
        partial: Any = head  # as the method has made sure
        assert view.decoded is not None
        found: Tensor = partial.chosen_features(shown, view.decoded, view.chosen, grid)
        return found

    def loss(
        self, stage: int, tokens: Tensor, images: Tensor, view: StageView, target: StageTarget, denominator: Tensor
    ) -> Tensor:
        """Compute the error of a stage's predictions on masked cells, summed by weight, over denominator.

        Args:
            stage: k.
            tokens: [B, R+T, D], what it put out.
            images: [B, C, H, W] uint8.
            view: what it saw.
            target: as targets() computed it.
            denominator: the loss weights of all images of the step, summed over their patches.
        """
        method, head = self.method, self._head(stage)
        scale, level, wanted = method.head(stage).scale, method.level(stage), method.target(stage)
        grid, num_prefix = method.grid(stage, view.grid), method.encoder.num_prefix
        weights = view.weights(grid)
        merged = method.encoder.level(0).patch / level.patch  # patches a side that a token stands for, inverted
        features = self._features(stage, tokens, view)
        cells = denominator * (scale * merged) ** 2
        is_linear = isinstance(head.pred, Prediction)
        predicted = _placed(head.pred(features) if is_linear else features, view, grid)
        if is_linear and isinstance(wanted, FusedTarget):
            loss = wanted.loss(predicted, images, weights, level.patch, self.colors, cells)
        else:
            vectors = target.vectors
            if vectors is None:
                vectors = wanted.vectors(images, level.patch, scale, self.colors)
            if isinstance(head.pred, Prediction):
                loss = masked_loss(predicted, vectors, weights, wanted.kind, denominator=cells)
            else:
                loss = head.pred.loss(predicted, vectors, weights, grid, cells, wanted.kind)
        if target.features is not None and method.distillation is not None:
            projected = self.projections[stage](tokens[:, num_prefix:])
            tokens_masked = denominator * merged**2
            learned = masked_loss(projected, target.features, weights, "l1", denominator=tokens_masked)
            loss = loss + method.distillation.weight * learned
        return loss


def num_visible(view: StageView, drawn: Sequence[StageView]) -> int:
    """Return how many patches of an image are visible by a view's mask, which several of those drawn may share."""
    return next(other.keep for other in drawn if other.masked is view.masked).shape[1]


def decodes_partly(head: HeadConfig, *, whole: bool = False) -> TypeGuard[DecodesPartly]:
    """Return whether a head decodes chosen tokens alone, when all that is masked is to be decoded too."""
    return isinstance(head, DecodesPartly) and (head.attends == "visible" or (head.share < 1 and not whole))


def _placed(values: Tensor, view: StageView, grid: Grid) -> Tensor:
    """Put values of chosen tokens, [B, C, P], in their places among all N of a grid, and zeros elsewhere."""
    if view.chosen is None:
        return values
    zero = values.new_zeros(values.shape[2])
    return restore_tokens(values, view.chosen, zero, num_tokens=grid[0] * grid[1])


def _checked_levels(teacher: Teacher | None, method: Method) -> list[Level]:
    """Describe the tokens of the teacher that every stage learns; make sure that they are on the student's grids."""
    assert method.distillation is not None
    if teacher is None:
        raise TeacherError("this method learns from a teacher; name an exported backbone")
    layers, depth = method.distillation.layers, teacher.config.depth
    if not all(0 <= layer < depth for layer in layers):
        raise TeacherError(f"the teacher must have the layers {layers}, it has {depth}")
    channels = method.encoder.channels
    if teacher.config.channels != channels:
        got = teacher.config.channels
        raise TeacherError(f"the teacher's images must have the channels of the student's, {channels}, got {got}")
    try:
        teacher.config.resized(method.encoder.image_size)
    except ValueError as error:
        raise TeacherError(f"the teacher must take the images of the student ({error})") from error
    levels = [teacher.config.level(layer + 1) for layer in layers]
    for stage, level in enumerate(levels):
        patch = method.level(stage).patch
        if level.patch != patch:
            raise TeacherError(f"the teacher's patches must be those of the student, {patch}, got {level.patch}")
    return levels
