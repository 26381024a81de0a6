"""Memory estimates: a step is traced on fake tensors, which have shapes but neither memory nor values."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bimkern.arena import Plan
from bimkern.data.step_layout import Segment
from bimkern.train.config.run import TrainingConfig
from bimkern.train.memory.rehearsal import Rehearsal, rehearsal_of
from bimkern.train.memory.trace import StepTrace
from bimkern.train.memory.tracker import AllocationTracker

ALIGNMENT = {"cpu": 64, "cuda": 512}  # of every block, in bytes, as in csrc/arena/upstream.h

STATES = 2  # optimizer tensors per parameter, of its size; there is also one scalar
_PLANNED = 3  # micro-batches in a plan at most; further ones are alike


class _NoValues(TorchDispatchMode):
    """Return False for the value of a fake tensor; torch asks for one when it draws truncated normal weights."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return False if func is torch.ops.aten._local_scalar_dense.default else func(*args, **(kwargs or {}))


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a step needs. They are not all needed at once, so the peak is less than the sum.

    Weights, optimizer and inputs are static; activations and gradients live within the step. Not included are the
    process, its loader, copies for checkpoints, and workspaces of libraries, which fake-tensor tracing cannot see.
    """

    weights: int  # with buffers, those of a teacher, and averaged ones
    gradients: int  # accumulated ones, at their peak
    optimizer: int
    inputs: int  # images of all micro-batches
    activations: int  # with their gradients, at their peak
    scopes: dict[str, int]  # peak of activations inside each scope
    bound: int  # lower bound of the peak, for any placement
    peak: int  # as the arena plans it


def step_plan(config: TrainingConfig, segment: Segment, device: str = "cpu") -> Plan:
    """Plan the memory of a step, with at most three micro-batches."""
    return trace(config, _shortened(segment, _PLANNED))[0].plan(ALIGNMENT[device])


def live_activation_peak(config: TrainingConfig, segment: Segment) -> int:
    """Return the peak of live bytes of activations and their gradients in a step of one micro-batch.

    It equals the `live_activation_bytes` that a CPU run without accumulation measures. Attention kernels of a GPU may
    save a little more or less.
    """
    return trace(config, replace(segment, batch_size=segment.micro_batch))[0].live.peak


def trace(config: TrainingConfig, segment: Segment) -> tuple[StepTrace, Rehearsal]:
    """Run a step on fake tensors."""
    image, channels = segment.image_size, config.channels
    sizes = [min(segment.micro_batch, segment.batch_size - i * segment.micro_batch) for i in range(segment.per_step)]
    with FakeTensorMode():
        rehearsal = without_values(config)
        given = [
            (torch.empty(size, channels, *image, dtype=torch.uint8), torch.empty(size, dtype=torch.int64))
            for size in sizes
        ]
        rehearsal.build_tables(*given[0])
        with AllocationTracker(rehearsal.model.parameters(), counted := StepTrace()):
            rehearsal.run(given, counted)
    return counted, rehearsal


def without_values(config: TrainingConfig) -> Rehearsal:
    """Build what a config trains, under fake tensors, also where it draws weights that depend on values."""
    with _NoValues():
        return rehearsal_of(config)


def static_bytes(rehearsal: Rehearsal) -> tuple[int, int]:
    """Return the bytes of the weights and of the optimizer state."""
    weights = sum(t.nbytes for module in rehearsal.kept for t in (*module.parameters(), *module.buffers()))
    states = (STATES * p.nbytes + torch.float32.itemsize for p in rehearsal.model.parameters() if p.numel())
    return weights, sum(states)


def image_bytes(config: TrainingConfig, segment: Segment) -> int:
    return segment.batch_size * (config.channels * segment.image_size.pixels + torch.int64.itemsize)


def _shortened(segment: Segment, count: int) -> Segment:
    """Return the segment with at most `count` micro-batches, all of full size if any are dropped."""
    return segment if segment.per_step <= count else replace(segment, batch_size=count * segment.micro_batch)
