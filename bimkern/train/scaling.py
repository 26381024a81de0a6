"""What steps of any size need, told from two small ones: memory is proportional to images, or the same for all.

Two steps of three micro-batches in two slices are counted. They differ in images, and so tell what each storage is
proportional to: the images of its micro-batch, those of a slice, those of the last slice, or nothing. More slices are
each like the second. More micro-batches are each like the second too, and what lives on after it (in BIM the outputs of
a block) is there once for each of them.

P micro-batches of a step.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from bimkern.arena import Scope
from bimkern.data.course import Stretch
from bimkern.mim.model import MIM
from bimkern.train.allocations import Allocations, Life, plan_of
from bimkern.train.config import Config
from bimkern.train.estimate import ALIGNMENT, Need, held, image_bytes, trace

_TRACED = 3  # micro-batches: the first, one like any other, and the last
_OTHER = 1
_SMALL = (5, 11)  # images; odd, so that both slices differ, and not 1, which needs no copy where others do
COUNTED = (
    f"steps of {_TRACED} micro-batches of {_SMALL[0]} and of {_SMALL[1]} images in at most 2 slices, on tensors "
    "without memory; what other sizes need is extrapolated, image by image"
)


@dataclass(frozen=True)
class _Sizes:
    """Images of a micro-batch, of its slices, and of the last one, 0 if there is one slice where others have more."""

    images: int
    rows: int
    rest: int

    @classmethod
    def of(cls, images: int, slices: int) -> "_Sizes":
        rows = -(-images // slices)
        return cls(images, rows, min(images - rows, rows) if slices > 1 else rows)


@dataclass(frozen=True)
class _Growth:
    """A storage whose bytes follow one of the sizes of its micro-batch, or none."""

    life: Life
    size: str | None
    bytes: int  # for each image of that size

    def with_sizes(self, sizes: _Sizes) -> Life:
        return replace(self.life, bytes=self.bytes * (1 if self.size is None else getattr(sizes, self.size)))


class Scaling:
    """Counts small steps of a recipe once and tells from them what its other steps need.

    Exact to some hundred bytes, but for two things: what the arena's plan loses to gaps is that of three micro-batches
    where there are more, and slices of one image may need a little more or less than is told.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._alignment = ALIGNMENT[device]
        self._known: dict[tuple[int, bool], _Small] = {}

    def need(self, config: Config, kind: Stretch) -> Need:
        """Tell what steps of a kind need; all configs given to one object differ in sizes alone.

        Raises:
            ArenaUnavailable: nothing can be planned here.
        """
        return self._small(config, kind).need(config, kind, self._alignment)

    def least(self, config: Config, kind: Stretch) -> int:
        """Tell what no order of the memory can do without: the bound of a need."""
        return self._small(config, kind).least(config, kind, self._alignment)

    def _small(self, config: Config, kind: Stretch) -> "_Small":
        key = (kind.image_size, min(config.run.slices, kind.micro_batch) > 1)
        if key not in self._known:
            self._known[key] = _Small(config, *key)
        return self._known[key]


class _Small:
    def __init__(self, config: Config, image_size: int, sliced: bool) -> None:
        slices = 2 if sliced else 1
        (one, model), (two, _) = (_counted(config, image_size, images, slices) for images in _SMALL)
        sizes = [_Sizes.of(images, slices) for images in _SMALL]
        self._counted = one
        self._growths = [_growth(a, b, *sizes) for a, b in zip(one.lives, two.lives, strict=True)]
        self._weights, self._optimizer = held(model)

    def need(self, config: Config, kind: Stretch, alignment: int) -> Need:
        lives, more = self._lives(config, kind), max(kind.per_step - _TRACED, 0)
        plan = plan_of(_scopes(self._counted.scopes, lives), lives, self._counted.ticks, alignment)
        live = self._live((replace(life, end=_first(life.end, life.accumulated)) for life in lives), more)
        bound = self.least(config, kind, alignment)
        return Need(
            weights=self._weights,
            gradients=self._counted.gradient_peak,
            optimizer=self._optimizer,
            inputs=image_bytes(config, kind),
            activations=max(live),
            scopes={scope.name: max(live[scope.begin : scope.end]) for scope in self._counted.scopes},
            bound=bound,
            peak=bound + plan.peak - plan.bound,
        )

    def least(self, config: Config, kind: Stretch, alignment: int) -> int:
        lives, more = self._lives(config, kind), max(kind.per_step - _TRACED, 0)
        outside = sum(life.bytes * (1 + more * (life.batch == _OTHER)) for life in lives if life.scope is None)
        aligned = (
            replace(life, bytes=-(-life.bytes // alignment) * alignment) for life in lives if life.scope is not None
        )
        always = self._weights + self._optimizer + image_bytes(config, kind) + outside
        return always + max(self._live(aligned, more))

    def _lives(self, config: Config, kind: Stretch) -> list[Life]:
        """Give the storages that were counted the bytes that they have in steps of a kind."""
        whole, last = kind.micro_batch, kind.batch_size - (kind.per_step - 1) * kind.micro_batch
        images = [whole] * (min(kind.per_step, _TRACED) - 1) + [last]
        sizes = [_Sizes.of(number, min(config.run.slices, whole)) for number in images]
        there = (g for g in self._growths if g.life.batch is None or g.life.batch < len(sizes))
        lives = (growth.with_sizes(sizes[growth.life.batch or 0]) for growth in there)
        return [life for life in lives if life.bytes]

    def _live(self, lives: Iterable[Life], more: int) -> list[int]:
        """Sum the live bytes at every tick, and so many micro-batches more, like the second: the most of them."""
        ticks = self._counted.ticks
        first, final = [0] * (ticks + 1), [0] * (ticks + 1)  # the turn of the second one is that of all of its like
        for life in lives:
            end = ticks if life.end is None else life.end
            copies = [(life.begin, end, 1, first), (life.begin, end, 1, final)]
            if more and life.batch == _OTHER and life.scope is None:
                copies = [(life.begin, end, 1 + more, deltas) for deltas in (first, final)]
            elif more and life.batch == _OTHER and end > self._counted.scopes[life.scope or 0].end:
                copies.append((self._turn_end(life.begin), end, more, first))
                copies.append((life.begin, max(self._turn_begin(end), life.begin), more, final))
            for begin, stop, times, deltas in copies:
                deltas[begin] += times * life.bytes
                deltas[stop] -= times * life.bytes
        return [max(pair) for pair in zip(accumulate(first), accumulate(final), strict=True)]

    def _turn_begin(self, tick: int) -> int:
        return max(begin for begin, _ in self._counted.turns if begin <= tick)

    def _turn_end(self, tick: int) -> int:
        return min((begin for begin, _ in self._counted.turns if begin > tick), default=self._counted.ticks)


def _counted(config: Config, image_size: int, images: int, slices: int) -> tuple[Allocations, MIM]:
    kind = Stretch(image_size=image_size, batch_size=_TRACED * images, micro_batch=images)
    return trace(replace(config, run=replace(config.run, slices=slices)), kind)


def _scopes(scopes: Iterable[Scope], lives: Iterable[Life]) -> list[Scope]:
    """Count the blocks of scopes anew."""
    sizes = Counter(life.scope for life in lives)
    scopes = list(scopes)
    ends = list(accumulate(sizes[i] for i in range(len(scopes))))
    return [replace(s, first=end - sizes[i], last=end) for i, (s, end) in enumerate(zip(scopes, ends, strict=True))]


def _growth(one: Life, two: Life, small: _Sizes, larger: _Sizes) -> _Growth:
    """Tell what the bytes of a storage are proportional to."""
    same = replace(two, bytes=one.bytes)
    assert same == one, f"steps of {small.images} and {larger.images} images differ in more than sizes"
    if one.bytes == two.bytes:
        return _Growth(one, None, one.bytes)
    for size in ("images", "rows", "rest"):
        a, b = getattr(small, size), getattr(larger, size)
        if one.bytes % a == 0 and one.bytes // a * b == two.bytes:
            return _Growth(one, size, one.bytes // a)
    raise AssertionError(f"{one.bytes} bytes of {small} and {two.bytes} of {larger} are not proportional to a size")


def _first(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)
