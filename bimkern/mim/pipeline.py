"""The pipeline: every local stage in a process of its own, with activations that flow forward only.

What a stage puts out in a step comes from its weights before its update of that step, as in the Local flow. So stages
that work on different micro-batches at the same time learn, bit for bit, what they learn one after the other.

Shapes: B images, T tokens of a stage, D width, S stages.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from bimkern.mim.flow import PLAIN_STEP, MicroBatch, NamedParameters, Staged, StepOptions, Update, add_gradients
from bimkern.mim.model import MIM


class Link(Protocol):
    """The way from the process of the stage before to the process of the stage behind.

    A key names what has the same shape on both sides, where the same keys come in the same order.
    """

    def expect(self, keys: Sequence[Hashable]) -> None:
        """Begin to receive what the stage before puts out in a step."""

    def receive(self) -> Tensor:
        """Return the next tokens that are expected, [B, T, D]."""

    def send(self, key: Hashable, tokens: Tensor) -> None:
        """Begin to send tokens, which may then be overwritten; wait while too many are on their way."""


@dataclass(frozen=True)
class Pipeline:
    """The Local flow, of which this process runs one stage."""

    stage: int
    link: Link

    def partition(self, model: Staged) -> dict[str, NamedParameters]:
        return {f"stage {self.stage + 1}": list(model.stage_parameters(self.stage))}

    def step(
        self,
        model: Staged,
        batches: Sequence[MicroBatch],
        updates: Sequence[Update],
        options: StepOptions = PLAIN_STEP,
    ) -> Tensor:
        (update,) = updates
        stage, denominators = self.stage, options.loss_weights(batches)
        losses = torch.zeros_like(denominators)  # those of all processes add up
        with options.scope(f"stage{stage}"):
            options.ready(0)
            passed = _Passed(self, batches, num_stages=model.num_stages)
            args = (model, stage, passed, batches, update, options)
            losses[stage] = add_gradients(*args, denominator=denominators[stage], ahead=partial(options.ahead, 0))
            if not model.is_frozen(stage, options.frozen_groups):
                update.apply()
        return losses


class _Passed:
    """The tokens of a step: they come from the stage before, and go to the stage behind."""

    def __init__(self, pipeline: Pipeline, batches: Sequence[MicroBatch], *, num_stages: int) -> None:
        self._link, self._batches = pipeline.link, batches
        self._is_first, self._is_last = pipeline.stage == 0, pipeline.stage == num_stages - 1
        self._keys = [_key(batches[i]) for i in range(len(batches))]
        if not self._is_first:
            self._link.expect(self._keys)

    def __getitem__(self, i: int) -> Tensor:
        return self._batches[i].images if self._is_first else self._link.receive()

    def __setitem__(self, i: int, tokens: Tensor) -> None:
        if not self._is_last:
            self._link.send(self._keys[i], tokens)


def _key(batch: MicroBatch) -> tuple[int, ...]:
    return (*batch.images.shape, *(view.keep.shape[1] for view in batch.views))


def keep_stage(model: MIM, stage: int) -> None:
    """Free the weights of all other stages: empty tensors take their places."""
    for name, tensor in model.state_dict().items():
        if model.method.stage_of(name) != stage:
            assign(model, name, tensor.new_empty(0))


def stage_state(model: MIM, stage: int) -> dict[str, Tensor]:
    """Return what state_dict() has of one stage."""
    return {name: tensor for name, tensor in model.state_dict().items() if model.method.stage_of(name) == stage}


def assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor, of any shape, in the place of a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    known = getattr(module, leaf)
    is_parameter = isinstance(known, nn.Parameter)
    setattr(module, leaf, nn.Parameter(value, requires_grad=known.requires_grad) if is_parameter else value)
