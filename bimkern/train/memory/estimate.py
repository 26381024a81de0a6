"""Memory estimates: a step is traced on fake tensors, which have shapes but neither memory nor values."""

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
from bimkern.train.memory.trace import StepTrace
from bimkern.train.memory.tracker import AllocationTracker

ALIGNMENT = {"cpu": 64, "cuda": 512}  # of every block, in bytes, as in csrc/arena/upstream.h

_STATES = 2  # optimizer tensors per parameter, of its size; there is also one scalar
_PLANNED = 3  # micro-batches in a plan at most; further ones are alike


class _FreeGradients:
    """An optimizer step of a group that only frees its gradients."""

    def __init__(self, group: NamedParameters) -> None:
        self._group = group

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def apply(self) -> None:
        for _, parameter in self._group:
            parameter.grad = None


class _NoValues(TorchDispatchMode):
    """Return False for the value of a fake tensor; torch asks for one when it draws truncated normal weights."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return False if func is torch.ops.aten._local_scalar_dense.default else func(*args, **(kwargs or {}))


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


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a step needs. They are not all needed at once, so the peak is less than the sum.

    Weights, optimizer and inputs are static; activations and gradients live within the step. Not included are the
    process, its loader, copies for checkpoints, and workspaces of libraries, which fake-tensor tracing cannot see.
    """

    weights: int  # with buffers, and those of a teacher
    gradients: int  # accumulated ones, at their peak
    optimizer: int
    inputs: int  # images of all micro-batches
    activations: int  # with their gradients, at their peak
    scopes: dict[str, int]  # peak of activations inside each scope
    bound: int  # lower bound of the peak, for any placement
    peak: int  # as the arena plans it


def step_plan(config: Config, segment: Segment, device: str = "cpu") -> Plan:
    """Plan the memory of a step, with at most three micro-batches."""
    return trace(config, _shortened(segment, _PLANNED))[0].plan(ALIGNMENT[device])


def live_activation_peak(config: Config, segment: Segment) -> int:
    """Return the peak of live bytes of activations and their gradients in a step of one micro-batch.

    It equals the `live_activation_bytes` that a CPU run without accumulation measures. Attention kernels of a GPU may
    save a little more or less.
    """
    return trace(config, replace(segment, batch_size=segment.micro_batch))[0].live.peak


def trace(config: Config, segment: Segment) -> tuple[StepTrace, MIM]:
    """Run a step on fake tensors."""
    run, side, channels = config.run, segment.image_size, config.method.encoder.channels
    sizes = [min(segment.micro_batch, segment.batch_size - i * segment.micro_batch) for i in range(segment.per_step)]
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
        with AllocationTracker(model.parameters(), counted := StepTrace()):
            batches = []
            for i, (images, ids) in enumerate(given):
                counted.turn(i)
                batches.append(MicroBatch(images, model.views(images, ids, run.seed)))
            counted.turn(None)
            config.method.flow.step(
                model, _InTurns(batches, counted.turn), updates, slices=run.slices, scope=counted.scope
            )
    return counted, model


def static_bytes(model: MIM) -> tuple[int, int]:
    """Return the bytes of the weights and of the optimizer state."""
    parameters = list(model.parameters())
    modules: list[nn.Module] = [model] if model.teacher is None else [model, model.teacher.encoder]
    weights = sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))
    return weights, sum(_STATES * p.nbytes + torch.float32.itemsize for p in parameters)


def image_bytes(config: Config, segment: Segment) -> int:
    return segment.batch_size * (config.method.encoder.channels * segment.image_size**2 + torch.int64.itemsize)


def _shortened(segment: Segment, count: int) -> Segment:
    """Return the segment with at most `count` micro-batches, all of full size if any are dropped."""
    return segment if segment.per_step <= count else replace(segment, batch_size=count * segment.micro_batch)


@torch.no_grad()
def _build_tables(model: MIM, images: Tensor, ids: Tensor, seed: int) -> None:
    """Run the model and its teacher once, so that they build and cache their tables for this image size."""
    tokens = images
    for stage, view in enumerate(model.views(images, ids, seed)):
        tokens = model.encode(stage, tokens, view)
        model.predict(stage, tokens, view)
    model.targets(range(model.num_stages), images)
