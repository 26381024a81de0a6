"""The methods whose steps are timed, on two ranks the small ones: their gradients pass a slow cable in a second."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.eager.form import find_form
from bench.eager.loop import EndToEndLoop
from bench.eager.network import Network
from bench.scaling.model import Phase, reduced_at_end
from bimkern.distributed.ranks import Ranks
from bimkern.distributed.transfers import BUCKET_BYTES, Transfer
from bimkern.image_size import ImageSize
from bimkern.mim.flow import Local, MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig
from bimkern.recipes.bim import FIXED_MASK, bim
from bimkern.recipes.mae import mae
from bimkern.train.config.run import Config
from bimkern.train.optim.group import GroupOptimizer

ENCODER = ViTConfig(image_size=ImageSize.square(96), patch=16, width=128, depth=12, num_heads=4)
DECODER = DecoderConfig(width=64, depth=2, num_heads=2)
# A network whose gradients fill several buckets of 25 MiB: those of the trainer, and DistributedDataParallel's own.
LARGER = ViTConfig(image_size=ImageSize.square(96), patch=16, width=384, depth=12, num_heads=6)
BIM, BIM_AT_END, MAE = "BIM", "BIM, one all-reduce at the end", "MAE, DistributedDataParallel"
LARGER_MAE, LARGER_IN_DDP = "MAE of ViT-S, ours", "MAE of ViT-S, DistributedDataParallel"
NAMES = (BIM, BIM_AT_END, MAE, LARGER_MAE, LARGER_IN_DDP)
DDP_BUCKET_MIB = 1  # its own 25 would hold the whole small network
_CPU = torch.device("cpu")


class Method(Protocol):
    """A network that trains on one batch."""

    def step(self) -> None:
        """Run one step; reductions may continue under the next."""

    def finish(self) -> None:
        """Wait for all reductions."""

    def phases(self) -> list[Phase]:
        """Run one step, and return its phases as they were."""

    @property
    def gradient_bytes(self) -> int: ...


class Ours:
    """A recipe's step, whose reductions overlap with what follows, or come all at the end."""

    def __init__(self, config: Config, batch_size: int, ranks: Ranks, *, at_end: bool = False) -> None:
        torch.manual_seed(0)
        self._model, self._flow, self._at_end = MIM(config.method), config.method.flow, at_end
        images = random_images(config, batch_size)
        ids = torch.arange(batch_size) + ranks.rank * batch_size
        self._batch = MicroBatch(images, self._model.views(images, ids, seed=0))
        options: dict[str, Any] = {"device": _CPU, "fp16": False, "ranks": ranks}
        groups = self._flow.partition(self._model)
        self._updates = [GroupOptimizer(name, group, config.optim, **options) for name, group in groups.items()]
        self._bytes = [bytes_of(parameter for _, parameter in group) for group in groups.values()]
        self._denominators = ranks.size * torch.stack([view.masked.sum() for view in self._batch.views])

    @property
    def gradient_bytes(self) -> int:
        return sum(self._bytes)

    def step(self) -> None:
        self._step([_Late(update) for update in self._updates] if self._at_end else self._updates)
        if self._at_end:
            for update in self._updates:
                update.apply()
            self.finish()

    def finish(self) -> None:
        for update in self._updates:
            update.finish()

    def phases(self) -> list[Phase]:
        if not isinstance(self._flow, Local):
            return backward_phases(self._model, self.step, BUCKET_BYTES)
        noted = [_Noted(update) for update in self._updates]
        began, found = time.perf_counter(), list[Phase]()
        self._step(noted)
        for i, (update, size) in enumerate(zip(noted, self._bytes, strict=True)):
            found.append(Phase(compute_s=update.applied_at - began, gradient_bytes=size, waits_for=(i,)))
            began = update.applied_at
        return reduced_at_end(found) if self._at_end else found

    def _step(self, updates: Sequence[Any]) -> None:
        notify: dict[str, Any] = {"ready": lambda number: self._updates[number].finish()}
        if not isinstance(self._flow, Local):  # buckets leave during the one backward pass
            notify["ahead"] = lambda number: self._updates[number].ahead()
        self._flow.step(self._model, [self._batch], updates, StepOptions(denominators=self._denominators, **notify))


class Usual:
    """The usual end-to-end step in DistributedDataParallel, or without it in one process."""

    def __init__(self, config: Config, batch_size: int, ranks: Ranks) -> None:
        torch.manual_seed(0)
        form = find_form(config.method)
        assert form is not None
        self._network, self._images = Network(form), random_images(config, batch_size)
        self._loop = EndToEndLoop(self._network, config.optim, torch.float32)
        if ranks.size > 1:
            options: dict[str, Any] = {"bucket_cap_mb": DDP_BUCKET_MIB, "gradient_as_bucket_view": True}
            self._loop.forward = DistributedDataParallel(self._network, **options)

    @property
    def gradient_bytes(self) -> int:
        return bytes_of(self._network.parameters())

    def step(self) -> None:
        self._loop.step(self._images)

    def finish(self) -> None:
        """Do nothing: the step waits for all."""

    def phases(self) -> list[Phase]:
        return backward_phases(self._network, self.step, DDP_BUCKET_MIB * 2**20)


class Wrapped:
    """Our network and update, whose gradients DistributedDataParallel sums in its own buckets."""

    def __init__(self, config: Config, batch_size: int, ranks: Ranks) -> None:
        torch.manual_seed(0)
        self._loss: nn.Module = _Loss(config, batch_size, ranks)
        self._network = self._loss.model
        options: dict[str, Any] = {"device": _CPU, "fp16": False}
        self._update = GroupOptimizer("the network", list(self._network.named_parameters()), config.optim, **options)
        if ranks.size > 1:
            self._loss = DistributedDataParallel(self._loss, gradient_as_bucket_view=True)

    @property
    def gradient_bytes(self) -> int:
        return bytes_of(self._network.parameters())

    def step(self) -> None:
        self._loss().backward()
        self._update.apply()

    def finish(self) -> None:
        """Do nothing: the step waits for all."""

    def phases(self) -> list[Phase]:
        return backward_phases(self._network, self.step, BUCKET_BYTES)


class _Loss(nn.Module):
    """The loss of a network on one batch."""

    def __init__(self, config: Config, batch_size: int, ranks: Ranks) -> None:
        super().__init__()
        self.model, self._images = MIM(config.method), random_images(config, batch_size)
        ids = torch.arange(batch_size) + ranks.rank * batch_size
        self._views = self.model.views(self._images, ids, seed=0)

    def forward(self) -> Tensor:
        model, tokens, losses = self.model, self._images, []
        targets = model.targets(range(model.num_stages), self._images)
        for stage, view in enumerate(self._views):
            tokens = model.encode(stage, tokens, view)
            losses.append(model.loss(stage, tokens, self._images, view, targets[stage], view.masked.sum()))
        return torch.stack(losses).sum()


def backward_phases(network: nn.Module, step: Callable[[], None], bucket_bytes: int) -> list[Phase]:
    """Run a step, and return the update and the forward pass, then the backward pass, cut where a bucket is full."""
    ready: list[tuple[float, int]] = []
    began = time.perf_counter()
    with _noting_gradients(network, ready):
        step()
    updated = time.perf_counter()
    found, since, filled = list[Phase](), began, 0
    for i, (at, size) in enumerate(ready):
        filled += size
        if filled >= bucket_bytes or i == len(ready) - 1:
            found.append(Phase(compute_s=at - since, gradient_bytes=filled))
            since, filled = at, 0
    update = Phase(compute_s=updated - since, waits_for=tuple(range(1, len(found) + 1)))
    return [update, *found]  # a step from one backward pass to the next


@contextmanager
def _noting_gradients(network: nn.Module, ready: list[tuple[float, int]]) -> Iterator[None]:
    """Note when the gradient of each parameter is complete, and its bytes."""

    def note(parameter: Tensor) -> None:
        ready.append((time.perf_counter(), bytes_of([parameter])))

    handles = [parameter.register_post_accumulate_grad_hook(note) for parameter in network.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Late:
    """An update that waits until the step is done."""

    def __init__(self, update: GroupOptimizer) -> None:
        self.scale = update.scale

    def apply(self) -> None:
        pass


class _Noted:
    """An update that notes when its stage has been computed."""

    def __init__(self, update: GroupOptimizer) -> None:
        self.scale, self._update = update.scale, update
        self.applied_at = 0.0

    def apply(self) -> None:
        self._update.apply()
        self.applied_at = time.perf_counter()


class Asleep:
    """The schedule of another method, whose compute is slept through."""

    def __init__(self, phases: Sequence[Phase], ranks: Ranks, *, at_end: bool = False) -> None:
        self._phases, self._ranks, self._at_end = phases, ranks, at_end
        self._gradients = [torch.zeros(round(phase.gradient_bytes / 4)) for phase in phases]
        self._sums: dict[int, Transfer] = {}

    @property
    def gradient_bytes(self) -> int:
        return round(sum(phase.gradient_bytes for phase in self._phases))

    def step(self) -> None:
        for i, phase in enumerate(self._phases):
            self._wait(i)
            time.sleep(phase.compute_s)
            if not self._at_end:
                self._begin(i)
        if self._at_end:
            for i in range(len(self._phases)):
                self._begin(i)
            self.finish()

    def finish(self) -> None:
        for i in range(len(self._phases)):
            self._wait(i)

    def _begin(self, i: int) -> None:
        self._sums[i] = self._ranks.begin_all_reduce(self._gradients[i])

    def _wait(self, i: int) -> None:
        if i in self._sums:
            self._sums.pop(i).wait()

    def phases(self) -> list[Phase]:
        return list(self._phases)


def random_images(config: Config, batch_size: int) -> Tensor:
    encoder = config.method.encoder
    shape = (batch_size, encoder.channels, *encoder.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def bytes_of(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _small(config: Config) -> Config:
    method = config.method
    return replace(config, method=replace(method, heads=(DECODER,) * len(method.heads)))


def method(name: str, batch_size: int, ranks: Ranks) -> Method:
    """Build one of NAMES, for a batch of its own in every rank."""
    of_bim, of_mae, larger = (
        _small(config) for config in (bim("bim", ENCODER, FIXED_MASK), mae("mae", ENCODER), mae("mae", LARGER))
    )
    build: dict[str, Callable[[], Method]] = {
        BIM: lambda: Ours(of_bim, batch_size, ranks),
        BIM_AT_END: lambda: Ours(of_bim, batch_size, ranks, at_end=True),
        MAE: lambda: Usual(of_mae, batch_size, ranks),
        LARGER_MAE: lambda: Ours(larger, batch_size, ranks),
        LARGER_IN_DDP: lambda: Wrapped(larger, batch_size, ranks),
    }
    return build[name]()
