"""A step of every task as a trace runs it: on fake tensors, and with updates that only free gradients.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from bimkern.mim.flow import Flow, MicroBatch, StepOptions
from bimkern.mim.pipeline import Pipeline, keep_stage
from bimkern.models.drop_path import draw_paths
from bimkern.models.layers import set_compute_dtype
from bimkern.train import network
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.run import DTYPES, Config, TrainingConfig
from bimkern.train.config.stage import StageConfig
from bimkern.train.memory.trace import StepTrace

Given = Sequence[tuple[Tensor, Tensor]]  # images [B, C, H, W] uint8 and draw ids [B] of every micro-batch


class Rehearsal(Protocol):
    """A network, and a step of its run."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def kept(self) -> Sequence[nn.Module]:
        """All that has weights, the model first."""

    def build_tables(self, images: Tensor, ids: Tensor) -> None:
        """Have everything built that is kept from the first step on."""

    def run(self, given: Given, counted: StepTrace) -> None:
        """Run the step, whose parts are scopes of a trace."""


def rehearsal_of(config: TrainingConfig) -> Rehearsal:
    """Build what a config trains, under fake tensors."""
    for kind, rehearsal in _REHEARSALS.items():
        if isinstance(config, kind):
            return rehearsal(config)
    raise TypeError(f"rehearsal_of: a config must be one of {', '.join(map(str, _REHEARSALS))}, got {type(config)}")


class _Pretraining:
    def __init__(self, config: Config) -> None:
        self._config, self.model = config, network.build(config)
        network.set_compute(self.model, DTYPES[config.run.precision])

    @property
    def kept(self) -> Sequence[nn.Module]:
        return [self.model] if self.model.teacher is None else [self.model, self.model.teacher.encoder]

    @torch.no_grad()
    def build_tables(self, images: Tensor, ids: Tensor) -> None:
        tokens, model = images, self.model
        for stage, view in enumerate(model.views(images, ids, self._config.run.seed)):
            tokens = model.encode(stage, tokens, view)
            model.predict(stage, tokens, view)
        model.targets(range(model.num_stages), images)

    def run(self, given: Given, counted: StepTrace) -> None:
        run, flow = self._config.run, self._flow()
        updates = [_FreeGradients(p for _, p in group) for group in flow.partition(self.model).values()]
        batches = []
        for i, (images, ids) in enumerate(given):
            counted.turn(i)
            batches.append(MicroBatch(images, self.model.views(images, ids, run.seed)))
        counted.turn(None)
        flow.step(
            self.model, _InTurns(batches, counted.turn), updates, StepOptions(slices=run.slices, scope=counted.scope)
        )

    def _flow(self) -> Flow:
        return self._config.method.flow


class _Stage(_Pretraining):
    """One stage of a pipeline, and its link: what it would receive is made, what it would send is dropped."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self._stage = config.stage
        self._shape: tuple[int, ...] = ()  # of what enters the stage for an image
        self._sizes: list[int] = []  # of the micro-batches to come

    @torch.no_grad()
    def build_tables(self, images: Tensor, ids: Tensor) -> None:
        super().build_tables(images, ids)
        tokens = images
        for stage, view in enumerate(self.model.views(images, ids, self._config.run.seed)[: self._stage]):
            tokens = self.model.encode(stage, tokens, view)
        self._shape = tuple(tokens.shape[1:])
        keep_stage(self.model, self._stage)

    def expect(self, keys: Sequence[Hashable]) -> None:
        self._sizes = [key[0] for key in keys if isinstance(key, tuple)]

    def receive(self) -> Tensor:
        return torch.empty(self._sizes.pop(0), *self._shape)

    def send(self, key: Hashable, tokens: Tensor) -> None:
        pass

    def _flow(self) -> Flow:
        return Pipeline(self._stage, self)


class _Finetuning:
    def __init__(self, config: FinetuneConfig) -> None:
        self._config, self.model = config, network.build_classifier(config)
        self.model.train_positions()
        set_compute_dtype(self.model, DTYPES[config.run.precision])

    @property
    def kept(self) -> Sequence[nn.Module]:
        return [self.model] * (1 if self._config.ema is None else 2)

    @torch.no_grad()
    def build_tables(self, images: Tensor, ids: Tensor) -> None:
        self.model(images)

    def run(self, given: Given, counted: StepTrace) -> None:
        config, loss = self._config, torch.zeros(1)
        count = sum(len(images) for images, _ in given)
        for i, (images, ids) in enumerate(given):
            counted.turn(i)
            with counted.scope(f"micro-batch {i + 1}"):
                if config.mixing is not None or config.augment.erase_prob:
                    images = self.model.normalized(images)
                mixes = config.mixing is not None
                targets = torch.empty(len(ids), self.model.head.out_features) if mixes else torch.empty_like(ids)
                draw_paths(self.model.encoder, ids, config.run.seed, images.device)
                error = self.model.loss(images, targets, count)
                error.backward()
                loss += error.detach()
                del error, images, targets
        counted.turn(None)
        with counted.scope("update"):
            _FreeGradients(self.model.parameters()).apply()


_REHEARSALS: dict[type[TrainingConfig], Callable[..., Rehearsal]] = {
    StageConfig: _Stage,  # before what it is one of
    Config: _Pretraining,
    FinetuneConfig: _Finetuning,
}


class _FreeGradients:
    """An optimizer step that only frees gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def apply(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class _InTurns(list[MicroBatch]):
    """Micro-batches that report which of them is being iterated over."""

    def __init__(self, batches: list[MicroBatch], turn: Callable[[int | None], None]) -> None:
        super().__init__(batches)
        self._turn = turn

    def __iter__(self) -> Iterator[MicroBatch]:
        for i, batch in enumerate(super().__iter__()):
            self._turn(i)
            yield batch
        self._turn(None)
