"""What steps of any size need, told from one that is counted: memory is proportional to images, or the same for all.

A step of one or three micro-batches, in one or two slices, is counted on tensors without memory, so that its images may
be any number: one so large and prime that the bytes of a storage tell what they are proportional to, the images of its
micro-batch, those of the first slice, those of the second, or nothing. More slices are each like the second. More
micro-batches are each like the second too, and what lives on after it (in BIM the outputs of a block) is there once for
each of them.

P micro-batches of a step, L storages that are born in it, T ticks.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from bimkern.arena import Scope
from bimkern.data.step_layout import Segment
from bimkern.train.config.run import Config
from bimkern.train.memory.estimate import ALIGNMENT, Need, held, image_bytes, trace
from bimkern.train.memory.trace import Allocations, Life, plan_of

Numbers = npt.NDArray[np.int64]

_TRACED = 3  # micro-batches, where there are several: the first, one like any other, and the last
_OTHER = 1
# Images of a micro-batch. Prime, as its larger half is; the smaller one is 6 * 833334631. No layer has such a size, so
# that what they divide grows with them, and what is smaller, below 5 GB, does not grow.
_COUNTED = 10_000_015_573
COUNTED = "one step on tensors without memory; what it needs at other sizes is told from it, image by image"


@dataclass(frozen=True)
class _Sizes:
    """Images of a micro-batch, and of its first two slices; of one slice alone, its images are those of both."""

    images: int
    first: int
    second: int

    @classmethod
    def of(cls, images: int, slices: int) -> "_Sizes":
        first = -(-images // slices)
        return cls(images, first, min(images - first, first) if slices > 1 else first)

    def growth(self, size: int) -> tuple[int, int]:
        """Tell what some bytes are proportional to, in the order of `counts`, and the bytes for each of it."""
        if size < self.second:
            return 0, size
        for which, number in enumerate(self.counts()[1:], 1):
            if size % number == 0:
                return which, size // number
        raise AssertionError(f"{size} bytes are not proportional to any of {self}")

    def counts(self) -> tuple[int, int, int, int]:
        return 1, self.images, self.first, self.second


class Scaling:
    """Counts steps of a recipe once and tells from them what its other steps need.

    Exact to some hundred bytes, but for two things. What the arena's plan loses to gaps is that of three micro-batches
    where there are more. And slices or steps of a single image need no copy where others do, and one where others do
    not: of tiny networks up to 4 KB are missing, of ViT-B nothing to 12 KB.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._alignment = ALIGNMENT[device]
        self._known: dict[tuple[int, bool, int], _Step] = {}

    def need(self, config: Config, kind: Segment) -> Need:
        """Tell what steps of a kind need; all configs given to one object differ in sizes alone.

        Raises:
            ArenaUnavailable: nothing can be planned here.
        """
        return self._step(config, kind).need(config, kind, self._alignment)

    def least(self, config: Config, kind: Segment) -> int:
        """Tell what no order of the memory can do without: the bound of a need."""
        return self._step(config, kind).least(config, kind, self._alignment)

    def always(self, config: Config, kind: Segment) -> int:
        """Tell what weights and the optimizer's state take."""
        return self._step(config, kind).always

    def _step(self, config: Config, kind: Segment) -> "_Step":
        key = (kind.image_size, config.run.slices > 1, _TRACED if kind.per_step > 1 else 1)
        if key not in self._known:
            self._known[key] = _Step(config, *key)
        return self._known[key]


class _Step:
    """A step that was counted, as columns of numbers, one for each storage."""

    def __init__(self, config: Config, image_size: int, sliced: bool, micro_batches: int) -> None:
        slices = 2 if sliced else 1
        kind = Segment(image_size=image_size, batch_size=micro_batches * _COUNTED, micro_batch=_COUNTED)
        counted, model = trace(replace(config, run=replace(config.run, slices=slices)), kind)
        sizes = _Sizes.of(_COUNTED, slices)
        self._counted = counted
        self._weights, self._optimizer = held(model)
        self.always = self._weights + self._optimizer
        lives, ticks = counted.lives, counted.ticks
        self._which, self._each = _columns(sizes.growth(life.bytes) for life in lives)  # [L], [L]
        self._batch = _column(life.batch or 0 for life in lives)
        self._inside = _column(life.scope is not None for life in lives) == 1
        ends = [ticks if life.end is None else life.end for life in lives]
        self._all = _Course(counted, lives, ends)
        given = zip(lives, ends, strict=True)
        until = [end if life.accumulated is None else min(end, life.accumulated) for life, end in given]
        self._activations = _Course(counted, lives, until)

    def need(self, config: Config, kind: Segment, alignment: int) -> Need:
        sizes, more = self._bytes(config, kind), max(kind.per_step - _TRACED, 0)
        given = zip(self._counted.lives, sizes.tolist(), strict=True)
        lives = [replace(life, bytes=size) for life, size in given if size]
        plan = plan_of(_scopes(self._counted.scopes, lives), lives, self._counted.ticks, alignment)
        live, bound = self._activations.live(sizes, more), self.least(config, kind, alignment)
        return Need(
            weights=self._weights,
            gradients=self._counted.gradient_peak,
            optimizer=self._optimizer,
            inputs=image_bytes(config, kind),
            activations=int(live.max()),
            scopes={scope.name: int(live[scope.begin : scope.end].max()) for scope in self._counted.scopes},
            bound=bound,
            peak=bound + plan.peak - plan.bound,
        )

    def least(self, config: Config, kind: Segment, alignment: int) -> int:
        sizes, more = self._bytes(config, kind), max(kind.per_step - _TRACED, 0)
        outside = (sizes * (1 + more * (self._batch == _OTHER)))[~self._inside].sum()
        aligned = -(-sizes // alignment) * alignment * self._inside
        return self.always + image_bytes(config, kind) + int(outside) + int(self._all.live(aligned, more).max())

    def _bytes(self, config: Config, kind: Segment) -> Numbers:
        """Give the storages that were counted the bytes that they have in steps of a kind; 0 where there are none."""
        whole, last = kind.micro_batch, kind.batch_size - (kind.per_step - 1) * kind.micro_batch
        images = [whole] * (min(kind.per_step, _TRACED) - 1) + [last]
        counts = np.zeros((_TRACED, 4), np.int64)
        for batch, number in enumerate(images):
            counts[batch] = _Sizes.of(number, config.run.slices).counts()
        result: Numbers = self._each * counts[self._batch, self._which]
        return result


class _Course:
    """Begins and ends of storages; those of the second micro-batch stand for all of its like."""

    def __init__(self, counted: Allocations, lives: list[Life], ends: list[int]) -> None:
        """Note where the storages of other micro-batches are beside those of the second one.

        What such a one leaves in its scope is there from the end of its turn, at the latest, to that of the next turn
        in which it dies, at the earliest: both are counted, and the larger sum is what is needed.
        """
        self._ticks = counted.ticks
        self._begins, self._ends = _column(life.begin for life in lives), _column(ends)
        others = [i for i, life in enumerate(lives) if life.batch == _OTHER]
        outside = [i for i in others if lives[i].scope is None]
        left = [i for i in others if lives[i].scope is not None and ends[i] > counted.scopes[lives[i].scope or 0].end]
        turns = [begin for begin, _ in counted.turns]
        self._outside, self._left = _column(outside), _column(left)
        self._turn_ends = _column(
            min((turn for turn in turns if turn > lives[i].begin), default=counted.ticks) for i in left
        )
        self._turn_begins = _column(max(max(turn for turn in turns if turn <= ends[i]), lives[i].begin) for i in left)

    def live(self, sizes: Numbers, more: int) -> Numbers:
        """Sum the live bytes at every tick, and so many micro-batches more, like the second: the most of them, [T]."""
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


def _scopes(scopes: Iterable[Scope], lives: Iterable[Life]) -> list[Scope]:
    """Count the blocks of scopes anew."""
    sizes = Counter(life.scope for life in lives)
    scopes = list(scopes)
    ends = list(accumulate(sizes[i] for i in range(len(scopes))))
    return [replace(s, first=end - sizes[i], last=end) for i, (s, end) in enumerate(zip(scopes, ends, strict=True))]
