"""What a step needs before it is run: counted on fake tensors, which have shapes but neither memory nor arithmetic."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bimkern.arena import Plan
from bimkern.data.step_layout import Segment
from bimkern.mim.flow import MicroBatch, NamedParameters
from bimkern.mim.model import MIM
from bimkern.train import network
from bimkern.train.config.run import DTYPES, Config
from bimkern.train.memory.trace import Allocations

ALIGNMENT = {"cpu": 64, "cuda": 512}  # of every block, in bytes: csrc/arena/upstream.h

_STATES = 2  # of the optimizer for every parameter, as large as it; and one number
_DRAWN = 3  # micro-batches of a plan at most: each of the others is like the one before


class _FreeGradients:
    """The update of a group as far as memory is concerned."""

    def __init__(self, group: NamedParameters) -> None:
        self._group = group

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def apply(self) -> None:
        for _, parameter in self._group:
            parameter.grad = None


class _NoValues(TorchDispatchMode):
    """Answer 0 to whoever asks a fake tensor for its value, as torch does where it draws truncated normal weights."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return False if func is torch.ops.aten._local_scalar_dense.default else func(*args, **(kwargs or {}))


class _InTurns(list[MicroBatch]):
    """Micro-batches that tell whose turn it is."""

    def __init__(self, batches: list[MicroBatch], turn: Callable[[int | None], None]) -> None:
        super().__init__(batches)
        self._turn = turn

    def __iter__(self) -> Iterator[MicroBatch]:
        for i, batch in enumerate(super().__iter__()):
            self._turn(i)
            yield batch
        self._turn(None)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a step needs. Not all of them are needed at once, so the peak is less than the sum.

    Weights, optimizer and inputs are there all the time; activations and gradients are born and die in the step. On top
    come the process, its loader, copies for saving, and what is no result of an operation: workspaces of libraries.
    """

    weights: int  # with buffers, and a teacher's
    gradients: int  # that are accumulated, at most
    optimizer: int
    inputs: int  # images of all micro-batches
    activations: int  # with their gradients, at most
    scopes: dict[str, int]  # activations inside each scope, at most
    bound: int  # no order of the memory can do with less
    peak: int  # as the arena plans it


def step_plan(config: Config, kind: Segment, device: str = "cpu") -> Plan:
    """Plan the memory of a step; of many micro-batches, that of a few."""
    return trace(config, _shortened(kind, _DRAWN))[0].plan(ALIGNMENT[device])


def live_activation_peak(config: Config, kind: Segment) -> int:
    """Count the most bytes of activations and their gradients that live at once while a micro-batch passes the network.

    Equal to the `live_activation_bytes` that a CPU run without accumulation counts on real tensors, in steps of that
    kind. A GPU's attention kernels may save a little more or less.
    """
    return trace(config, replace(kind, batch_size=kind.micro_batch))[0].peak


def exact_need(config: Config, kind: Segment, device: str = "cpu") -> Need:
    """Count what steps of a kind need, all of their micro-batches and slices: minutes, where they are many."""
    counted, model = trace(config, kind)
    weights, optimizer = held(model)
    inputs, plan = image_bytes(config, kind), counted.plan(ALIGNMENT[device])
    always = weights + optimizer + inputs + counted.outside
    return Need(
        weights=weights,
        gradients=counted.gradient_peak,
        optimizer=optimizer,
        inputs=inputs,
        activations=counted.peak,
        scopes=counted.activations,
        bound=always + plan.bound,
        peak=always + plan.peak,
    )


def trace(config: Config, kind: Segment) -> tuple[Allocations, MIM]:
    """Run a step of some kind on fake tensors."""
    run, side, channels = config.run, kind.image_size, config.method.encoder.channels
    sizes = [min(kind.micro_batch, kind.batch_size - i * kind.micro_batch) for i in range(kind.per_step)]
    with FakeTensorMode():
        with _NoValues():
            model = network.build(config)
        network.set_compute(model, DTYPES[run.precision])
        updates = [_FreeGradients(group) for group in config.method.flow.partition(model).values()]
        given = [
            (torch.empty(size, channels, side, side, dtype=torch.uint8), torch.empty(size, dtype=torch.int64))
            for size in sizes
        ]
        _build_tables(model, *given[0], run.seed)
        with Allocations(model.parameters()) as counted:
            batches = []
            for i, (images, ids) in enumerate(given):
                counted.turn(i)
                batches.append(MicroBatch(images, model.views(images, ids, run.seed)))
            counted.turn(None)
            config.method.flow.step(
                model, _InTurns(batches, counted.turn), updates, slices=run.slices, scope=counted.scope
            )
    return counted, model


def held(model: MIM) -> tuple[int, int]:
    """Return the bytes of weights and of the optimizer's state."""
    parameters = list(model.parameters())
    modules: list[nn.Module] = [model] if model.teacher is None else [model, model.teacher.encoder]
    weights = sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))
    return weights, sum(_STATES * p.nbytes + torch.float32.itemsize for p in parameters)


def image_bytes(config: Config, kind: Segment) -> int:
    return kind.batch_size * (config.method.encoder.channels * kind.image_size**2 + torch.int64.itemsize)


def _shortened(kind: Segment, count: int) -> Segment:
    """Return a kind of step that has so many whole micro-batches, or its own where these are no more."""
    return kind if kind.per_step <= count else replace(kind, batch_size=count * kind.micro_batch)


@torch.no_grad()
def _build_tables(model: MIM, images: Tensor, ids: Tensor, seed: int) -> None:
    """Have the model, and its teacher, build what they keep for images of a size, by passing some through."""
    tokens = images
    for stage, view in enumerate(model.views(images, ids, seed)):
        tokens = model.encode(stage, tokens, view)
        model.predict(stage, tokens, view)
    model.targets(range(model.num_stages), images)
