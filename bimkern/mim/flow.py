"""Gradient flows: how far an error travels, and when an update happens.

A flow runs one optimizer step: it computes the loss of every stage over all micro-batches of the step, backpropagates,
and calls the updates. Every head decodes its batch in slices, since its loss is a sum over images. A stage whose last
layer is frozen only runs forward: its head decodes nothing.

Shapes: B images, T tokens of a stage, D width, S stages.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from bimkern import pieces
from bimkern.mim.masking.view import StageView
from bimkern.mim.targets import StageTarget

ScopeFactory = Callable[[str], AbstractContextManager[object]]
Notify = Callable[[int], object]
NamedParameters = list[tuple[str, nn.Parameter]]


class Staged(Protocol):
    """What a flow asks of a model; mim/model.py says what each does."""

    @property
    def num_stages(self) -> int: ...
    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...
    def stage_parameters(self, stage: int) -> Iterable[tuple[str, nn.Parameter]]: ...
    def is_frozen(self, stage: int, frozen_groups: int) -> bool: ...
    def encode(self, stage: int, inputs: Tensor, view: StageView, frozen_groups: int = 0) -> Tensor: ...
    def targets(self, stages: Sequence[int], images: Tensor) -> dict[int, StageTarget]: ...
    def loss(
        self, stage: int, tokens: Tensor, images: Tensor, view: StageView, target: StageTarget, denominator: Tensor
    ) -> Tensor: ...


class Update(Protocol):
    """The optimizer of one group of parameters."""

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to backpropagate from, scaled where half precision needs it."""
        ...

    def apply(self) -> None:
        """Update the parameters, or begin to: see `ready` of Flow.step. Free their gradients."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    images: Tensor  # [B, C, H, W] uint8
    views: list[StageView]  # one for every stage


class Tokens(Protocol):
    """What enters a stage, by micro-batch: it is replaced by what the stage puts out."""

    def __getitem__(self, i: int, /) -> Tensor: ...
    def __setitem__(self, i: int, tokens: Tensor, /) -> None: ...


def _unnoticed(number: int) -> None:
    """Do nothing: one process makes its updates when they are applied."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a step: it computes gradients, and updates.

    In steps that are alike the gradients are the same kernels on tensors of the same shapes; the update is not, since
    its rates differ.
    """

    name: str
    gradients: Callable[[list[Tensor], Tensor], None]
    """Takes the tokens that enter, by micro-batch, and where losses go. It replaces those by what leaves, and writes
    these; what else it reads are the batches and their loss weights."""
    parameters: Callable[[], Iterable[tuple[str, nn.Parameter]]]  # that it may add gradients to
    update: Callable[[], None]


RunPart = Callable[[Part, list[Tensor], Tensor, ScopeFactory], None]


def run_part(part: Part, tokens: list[Tensor], losses: Tensor, scope: ScopeFactory) -> None:
    """Run a part in a scope of its own."""
    with scope(part.name):
        part.gradients(tokens, losses)
        part.update()


Targets = dict[int, StageTarget]
Beside = Callable[[Callable[[], Targets], Tensor], Callable[[], Targets]]


def when_needed(compute: Callable[[], Targets], images: Tensor) -> Callable[[], Targets]:
    """Compute targets of images when they are asked for."""
    return compute


@dataclass(frozen=True, kw_only=True, eq=False)
class StepOptions:
    """How a flow runs a step.

    Args:
        slices: parts in which a head decodes a micro-batch.
        frozen_groups: how many layer groups, from the first on, do not learn.
        scope: called with a name for each part of the step; what is allocated inside has died at the next step.
        denominators: loss weights of every stage over the whole step, [S], where other processes have a part of it; by
            default those of the batches.
        ready: called with the number of an update before its parameters are read: that of the step before may still be
            under way.
        ahead: called with the number of an update before the last backward pass that it takes gradients from, which
            adds to each of them at most once.
        run: runs every part of the step.
        beside: called with what computes targets, and the images that it reads, before the encoder runs; what it
            returns is called for the targets after it.
    """

    slices: int = 1
    frozen_groups: int = 0
    scope: ScopeFactory = nullcontext
    denominators: Tensor | None = None
    ready: Notify = _unnoticed
    ahead: Notify = _unnoticed
    run: RunPart = run_part
    beside: Beside = when_needed

    def loss_weights(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Return the loss weights of every stage over the whole step, [S]."""
        return denominators_of(batches) if self.denominators is None else self.denominators


PLAIN_STEP = StepOptions()  # of one process, in one piece


class Flow(Protocol):
    """A frozen dataclass that runs optimizer steps."""

    def partition(self, model: Staged) -> dict[str, NamedParameters]:
        """Return the groups of parameters that update on their own, by name."""

    def step(
        self,
        model: Staged,
        batches: Sequence[MicroBatch],
        updates: Sequence[Update],
        options: StepOptions = PLAIN_STEP,
    ) -> Tensor:
        """Run one step.

        Args:
            model: the network.
            batches: the micro-batches of the step.
            updates: one for every group of partition(), in its order.
            options: how it is run.

        Returns:
            The losses of the stages, [S], detached; NaN for a stage that is frozen. Those of all processes add up.
        """


@pieces.register(Flow)
@dataclass(frozen=True)
class Local:
    """Every stage learns from its own loss alone: forward, decode, backward, update, free, pass on the output.

    With several micro-batches the order is stage-major: all of them pass a stage before any enters the next, so that
    the gradients of one stage exist at a time.

    Source: Luo et al. 2023 (BIM), section 3.2 and algorithm 1.
    """

    def partition(self, model: Staged) -> dict[str, NamedParameters]:
        return {f"stage {k + 1}": list(model.stage_parameters(k)) for k in range(model.num_stages)}

    def step(
        self,
        model: Staged,
        batches: Sequence[MicroBatch],
        updates: Sequence[Update],
        options: StepOptions = PLAIN_STEP,
    ) -> Tensor:
        tokens = [batch.images for batch in batches]
        denominators = options.loss_weights(batches)
        losses = torch.full_like(denominators, math.nan)
        for stage, update in enumerate(updates):
            part = Part(
                f"stage{stage}",
                partial(_stage_gradients, model, stage, batches, update, options, denominators[stage]),
                partial(model.stage_parameters, stage),
                _nothing if model.is_frozen(stage, options.frozen_groups) else update.apply,
            )
            options.run(part, tokens, losses[stage], options.scope)
        return losses


@pieces.register(Flow)
@dataclass(frozen=True)
class EndToEnd:
    """The losses of all taps travel back to the images; one update for all parameters.

    Source: He et al. 2022 (MAE) with one tap; Wang et al. 2023 (LocalMIM), section 3.2 with several.
    """

    def partition(self, model: Staged) -> dict[str, NamedParameters]:
        return {"the network": list(model.named_parameters())}

    def step(
        self,
        model: Staged,
        batches: Sequence[MicroBatch],
        updates: Sequence[Update],
        options: StepOptions = PLAIN_STEP,
    ) -> Tensor:
        (update,) = updates
        denominators = options.loss_weights(batches)
        losses = torch.full_like(denominators, math.nan)
        gradients = partial(_all_gradients, model, batches, update, options, denominators)
        options.run(Part("step", gradients, model.named_parameters, update.apply), [], losses, options.scope)
        return losses


def _nothing() -> None:
    """Make no update: the part is frozen."""


def _stage_gradients(
    model: Staged,
    stage: int,
    batches: Sequence[MicroBatch],
    update: Update,
    options: StepOptions,
    denominator: Tensor,
    tokens: list[Tensor],
    loss: Tensor,
) -> None:
    options.ready(stage)
    args = (model, stage, tokens, batches, update, options)
    loss.copy_(add_gradients(*args, denominator=denominator, ahead=partial(options.ahead, stage)))


def _all_gradients(
    model: Staged,
    batches: Sequence[MicroBatch],
    update: Update,
    options: StepOptions,
    denominators: Tensor,
    _: list[Tensor],
    losses: Tensor,
) -> None:
    options.ready(0)
    frozen_groups = options.frozen_groups
    first = sum(model.is_frozen(stage, frozen_groups) for stage in range(model.num_stages))
    losses[first:].zero_()
    for i, batch in enumerate(batches):
        tokens, taps, grads = batch.images, [], []
        computed = options.beside(partial(model.targets, range(first, model.num_stages), batch.images), batch.images)
        for stage, view in enumerate(batch.views):
            tokens = model.encode(stage, tokens, view, frozen_groups)
            taps.append(tokens)
        targets = computed()
        for stage in range(first, model.num_stages):
            args = (targets.pop(stage), denominators[stage], update, options.slices)
            part, grad = _decode(model, stage, taps[stage], batch, *args)
            losses[stage] += part
            grads.append(grad)
        if i == len(batches) - 1:
            options.ahead(0)
        torch.autograd.backward(taps[first:], grads)


def add_gradients(
    model: Staged,
    stage: int,
    tokens: Tokens,
    batches: Sequence[MicroBatch],
    update: Update,
    options: StepOptions,
    *,
    denominator: Tensor,
    ahead: Callable[[], object],
) -> Tensor:
    """Compute the gradients of a stage from all micro-batches of a step, by its own loss; a frozen one has none.

    Args:
        model: the network.
        stage: k.
        tokens: what enters the stage, images for stage 0; each is replaced by what it puts out, detached.
        batches: the micro-batches of the step.
        update: that of the stage.
        options: of the step.
        denominator: loss weights of the stage over the whole step.
        ahead: called before the last backward pass.

    Returns:
        The loss of the stage, detached; NaN where it is frozen.
    """
    frozen = model.is_frozen(stage, options.frozen_groups)
    loss = torch.full_like(denominator, math.nan)
    for i, batch in enumerate(batches):
        computed = None if frozen else options.beside(partial(model.targets, [stage], batch.images), batch.images)
        out = model.encode(stage, tokens[i], batch.views[stage], options.frozen_groups)
        tokens[i] = out.detach()
        if computed is None:
            continue
        target = computed()[stage]
        part, grad = _decode(model, stage, out, batch, target, denominator, update, options.slices)
        if i == len(batches) - 1:
            ahead()
        out.backward(grad)
        loss = part if i == 0 else loss + part
        del out, grad, target
    return loss


def denominators_of(batches: Sequence[MicroBatch]) -> Tensor:
    """Sum the loss weights of every stage over the whole step, [S]."""
    stages = range(len(batches[0].views))
    return torch.stack([torch.stack([batch.views[s].masked.sum() for batch in batches]).sum() for s in stages])


def _decode(
    model: Staged,
    stage: int,
    tokens: Tensor,
    batch: MicroBatch,
    target: StageTarget,
    denominator: Tensor,
    update: Update,
    slices: int,
) -> tuple[Tensor, Tensor]:
    """Run a head forward and backward slice by slice; return the loss and the gradient of tokens [B, T, D]."""
    loss = torch.zeros_like(denominator)
    grad = torch.empty_like(tokens)
    size = -(-len(tokens) // slices)
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        leaf = tokens[rows].detach().requires_grad_()
        view = batch.views[stage].rows(rows)
        part = model.loss(stage, leaf, batch.images[rows], view, target.rows(rows), denominator)
        update.scale(part).backward()
        assert leaf.grad is not None
        grad[rows] = leaf.grad
        loss += part.detach()
    return loss, grad
