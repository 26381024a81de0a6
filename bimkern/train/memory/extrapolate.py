"""Extrapolation of memory estimates: one step is traced, and scaled to any number of images, slices and micro-batches.

The size of a storage is constant, or proportional to the images of its micro-batch, of the first slice, or of the
second slice. The traced step has one or three micro-batches in one or two slices, on fake tensors, so it can have any
number of images. Their number is so large and prime that the size of a storage shows what it is proportional to.
Further slices and micro-batches are like the second one; storages that outlive their micro-batch (in BIM the outputs of
a stage) count once for each.

Shapes: L storages of the step, T ticks.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bimkern.arena import Scope
from bimkern.data.step_layout import Segment
from bimkern.image_size import ImageSize
from bimkern.train.config.run import ConfigError, TrainingConfig
from bimkern.train.config.stage import StageConfig
from bimkern.train.memory.estimate import ALIGNMENT, MemoryEstimate, image_bytes, static_bytes, trace
from bimkern.train.memory.rehearsal import Rehearsal
from bimkern.train.memory.trace import Lifetime, StepTrace, plan_of

Numbers = npt.NDArray[np.int64]

_FAKE_TENSORS = logging.getLogger("torch._subclasses.fake_tensor")

_TRACED = 3  # micro-batches, if there are several: the first, a middle one and the last
_MIDDLE = 1
# Images of a traced micro-batch: prime, and so is the larger half; the smaller half is 6 times a prime. No layer has
# such a size, so a storage is proportional to the images if they divide its size, and constant if it is below 5 GB. Of
# images so large that torch cannot count the bytes of so many, fewer are traced.
_TRACED_IMAGES = (10_000_015_573, 200_001_877)
_LARGEST_CONSTANT = 5_000_000_000
METHOD = "one step is traced on fake tensors and extrapolated to other sizes"


@dataclass(frozen=True)
class _Sizes:
    """Images of a micro-batch and of its first two slices; if there is only one slice, it stands for both."""

    images: int
    first: int
    second: int

    @classmethod
    def of(cls, images: int, slices: int) -> "_Sizes":
        first = -(-images // slices)
        return cls(images, first, min(images - first, first) if slices > 1 else first)

    def growth(self, size: int) -> tuple[int, int]:
        """Return the index in `counts` of what a size is proportional to, and the bytes per unit of it."""
        for which, number in enumerate(self.counts()[1:], 1):
            if size % number == 0:
                return which, size // number
        if size < _LARGEST_CONSTANT:
            return 0, size
        raise AssertionError(f"{size} bytes are not proportional to any of {self}")

    def counts(self) -> tuple[int, int, int, int]:
        return 1, self.images, self.first, self.second


class Extrapolation:
    """Trace steps of a recipe once and extrapolate to its other steps.

    Exact to a few hundred bytes, with two exceptions. Gaps in the plan are those of at most three micro-batches. And
    slices or steps of a single image make other copies than larger ones: up to 4 KB are missing for tiny networks, up
    to 12 KB for ViT-B.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._alignment = ALIGNMENT[device]
        self._known: dict[_Key, _Step] = {}
        self._estimates: dict[tuple[_Key, int, Segment], MemoryEstimate] = {}

    def estimate(self, config: TrainingConfig, segment: Segment) -> MemoryEstimate:
        """Estimate the steps of a segment; configs passed to one object must differ in sizes and stages alone.

        Raises:
            ArenaUnavailable: the arena cannot plan on this machine.
        """
        key = (_key(config, segment), config.run.num_slices, segment)
        if key not in self._estimates:  # a plan takes as long as a trace
            self._estimates[key] = self._step(config, segment).estimate(config, segment, self._alignment)
        return self._estimates[key]

    def lower_bound(self, config: TrainingConfig, segment: Segment) -> int:
        """Return the lower bound of the peak, for any placement."""
        return self._step(config, segment).lower_bound(config, segment, self._alignment)

    def static_bytes(self, config: TrainingConfig, segment: Segment) -> int:
        """Return the bytes of the weights and of the optimizer state."""
        return self._step(config, segment).static_bytes

    def _step(self, config: TrainingConfig, segment: Segment) -> "_Step":
        key = _key(config, segment)
        if key not in self._known:
            self._known[key] = _Step(config, key.image_size, key.sliced, key.micro_batches)
        return self._known[key]


class _Key(NamedTuple):
    """What tells the traced steps of a recipe from each other."""

    stage: int | None  # of a pipeline; None: the whole network
    recomputed: str
    image_size: ImageSize
    sliced: bool
    micro_batches: int


def _key(config: TrainingConfig, segment: Segment) -> _Key:
    stage = config.stage if isinstance(config, StageConfig) else None
    micro_batches = _TRACED if segment.per_step > 1 else 1
    return _Key(stage, config.run.recomputed, segment.image_size, config.run.num_slices > 1, micro_batches)


class _Step:
    """A traced step, as columns of numbers with one entry per storage."""

    def __init__(self, config: TrainingConfig, image_size: ImageSize, sliced: bool, micro_batches: int) -> None:
        slices = 2 if sliced else 1
        if config.run.num_slices != slices:
            config = replace(config, run=config.run.in_slices(slices))
        counted, rehearsal, images = _traced(config, image_size, micro_batches)
        sizes = _Sizes.of(images, slices)
        self._counted = counted
        self._weights, self._optimizer = static_bytes(rehearsal)
        self.static_bytes = self._weights + self._optimizer
        lifetimes, ticks = counted.lifetimes, counted.ticks
        self._which, self._each = _columns(sizes.growth(lifetime.bytes) for lifetime in lifetimes)  # [L], [L]
        self._batch = _column(lifetime.batch or 0 for lifetime in lifetimes)
        self._inside = _column(lifetime.scope is not None for lifetime in lifetimes) == 1
        ends = [ticks if lifetime.end is None else lifetime.end for lifetime in lifetimes]
        self._all = _Timeline(counted, lifetimes, ends)
        given = zip(lifetimes, ends, strict=True)
        until = [end if lifetime.accumulated is None else min(end, lifetime.accumulated) for lifetime, end in given]
        self._activations = _Timeline(counted, lifetimes, until)

    def estimate(self, config: TrainingConfig, segment: Segment, alignment: int) -> MemoryEstimate:
        sizes, more = self._bytes(config, segment), max(segment.per_step - _TRACED, 0)
        given = zip(self._counted.lifetimes, sizes.tolist(), strict=True)
        lifetimes = [replace(lifetime, bytes=size) for lifetime, size in given if size]
        plan = plan_of(_scopes(self._counted.scopes, lifetimes), lifetimes, self._counted.ticks, alignment)
        live, bound = self._activations.live(sizes, more), self.lower_bound(config, segment, alignment)
        return MemoryEstimate(
            weights=self._weights,
            gradients=self._counted.gradient_peak,
            optimizer=self._optimizer,
            inputs=image_bytes(config, segment),
            activations=int(live.max()),
            scopes={scope.name: int(live[scope.begin : scope.end].max()) for scope in self._counted.scopes},
            bound=bound,
            peak=bound + plan.peak - plan.bound,
        )

    def lower_bound(self, config: TrainingConfig, segment: Segment, alignment: int) -> int:
        sizes, more = self._bytes(config, segment), max(segment.per_step - _TRACED, 0)
        outside = (sizes * (1 + more * (self._batch == _MIDDLE)))[~self._inside].sum()
        aligned = -(-sizes // alignment) * alignment * self._inside
        return (
            self.static_bytes + image_bytes(config, segment) + int(outside) + int(self._all.live(aligned, more).max())
        )

    def _bytes(self, config: TrainingConfig, segment: Segment) -> Numbers:
        """Return the sizes of the traced storages in steps of a segment, [L]; 0 for those that it lacks."""
        whole, last = segment.micro_batch, segment.batch_size - (segment.per_step - 1) * segment.micro_batch
        images = [whole] * (min(segment.per_step, _TRACED) - 1) + [last]
        counts = np.zeros((_TRACED, 4), np.int64)
        for batch, number in enumerate(images):
            counts[batch] = _Sizes.of(number, config.run.num_slices).counts()
        result: Numbers = self._each * counts[self._batch, self._which]
        return result


def _traced(config: TrainingConfig, image_size: ImageSize, micro_batches: int) -> tuple[StepTrace, Rehearsal, int]:
    """Trace a step; return the images of a micro-batch as well.

    Raises:
        ConfigError: images are so large that torch cannot count their bytes.
    """
    for images in _TRACED_IMAGES:
        segment = Segment(image_size=image_size, batch_size=micro_batches * images, micro_batch=images)
        try:
            with _without_log():
                return *trace(config, segment), images
        except RuntimeError as error:
            if "Storage size calculation overflowed" not in str(error):
                raise
            overflow = error
    raise ConfigError(f"images of {image_size} px are too large to estimate their memory ({overflow})") from overflow


@contextmanager
def _without_log() -> Iterator[None]:
    """Have fake tensors log no error: it is raised as well."""
    disabled, _FAKE_TENSORS.disabled = _FAKE_TENSORS.disabled, True
    try:
        yield
    finally:
        _FAKE_TENSORS.disabled = disabled


class _Timeline:
    """Begins and ends of storages; those of the middle micro-batch stand for all micro-batches like it."""

    def __init__(self, counted: StepTrace, lifetimes: list[Lifetime], ends: list[int]) -> None:
        """Find when the storages of further micro-batches live.

        A storage that outlives its turn lives from the end of that turn, at the latest, until the turn in which it is
        freed begins, at the earliest. Both cases are summed, and the larger sum counts.
        """
        self._ticks = counted.ticks
        self._begins, self._ends = _column(lifetime.begin for lifetime in lifetimes), _column(ends)
        middle = [i for i, lifetime in enumerate(lifetimes) if lifetime.batch == _MIDDLE]
        scope_ends = {i: counted.scopes[scope].end for i in middle if (scope := lifetimes[i].scope) is not None}
        outside = [i for i in middle if i not in scope_ends]
        left = [i for i, end in scope_ends.items() if ends[i] > end]
        turns = [begin for begin, _ in counted.turns]
        next_turns = (min((turn for turn in turns if turn > lifetimes[i].begin), default=counted.ticks) for i in left)
        last_turns = (max(turn for turn in turns if turn <= ends[i]) for i in left)
        self._outside, self._left = _column(outside), _column(left)
        self._turn_ends = _column(next_turns)
        self._turn_begins = np.maximum(_column(last_turns), self._begins[self._left])

    def live(self, sizes: Numbers, more: int) -> Numbers:
        """Return the live bytes at every tick, [T], with `more` further micro-batches."""
        both = np.zeros(self._ticks + 1, np.int64)
        _add(both, self._begins, self._ends, sizes)
        if not more:
            result: Numbers = both.cumsum()
            return result
        _add(both, self._begins[self._outside], self._ends[self._outside], more * sizes[self._outside])
        first, final = both, both.copy()
        left = more * sizes[self._left]
        _add(first, self._turn_ends, self._ends[self._left], left)
        _add(final, self._begins[self._left], self._turn_begins, left)
        return np.maximum(first.cumsum(), final.cumsum())


def _add(changes: Numbers, begins: Numbers, ends: Numbers, sizes: Numbers) -> None:
    np.add.at(changes, begins, sizes)
    np.subtract.at(changes, ends, sizes)


def _column(numbers: Iterable[int]) -> Numbers:
    return np.fromiter(numbers, np.int64)


def _columns(pairs: Iterable[tuple[int, int]]) -> tuple[Numbers, Numbers]:
    first, second = zip(*pairs, strict=True)
    return _column(first), _column(second)


def _scopes(scopes: Iterable[Scope], lifetimes: Iterable[Lifetime]) -> list[Scope]:
    """Return the scopes with the indices of their allocations among these lifetimes."""
    sizes = Counter(lifetime.scope for lifetime in lifetimes)
    scopes = list(scopes)
    ends = list(accumulate(sizes[i] for i in range(len(scopes))))
    return [replace(s, first=end - sizes[i], last=end) for i, (s, end) in enumerate(zip(scopes, ends, strict=True))]
