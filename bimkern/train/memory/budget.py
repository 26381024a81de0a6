"""Whether a run fits into memory, what would, and what to do when it did not."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bimkern.arena import unusable
from bimkern.data.step_layout import Segment
from bimkern.errors import RunError
from bimkern.train.config.run import Config, ConfigError, RunConfig
from bimkern.train.memory.estimate import Need
from bimkern.train.memory.extrapolate import Scaling
from bimkern.units import human_bytes

_CGROUP = Path("/sys/fs/cgroup")
# Of torch on a CPU, which has no type for it. Our own kernels pass them on since torch 2.13: before, a shortage there
# ends the run like any other error.
_TEXTS = ("can't allocate memory", "std::bad_alloc")
_MOST_IMAGES = 2**20  # a batch that is looked for
_MOST_SLICES = 32  # so many already cost a fifth of the time


class OutOfMemory(RunError, RuntimeError):
    """There was no memory for a step; the message says for how many images at a time."""


def is_shortage(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _TEXTS)


def halved(run: RunConfig) -> RunConfig:
    """Return the options with half as many images at a time, and the same batch.

    Raises:
        ConfigError: one at a time is the least.
    """
    if run.images_at_a_time == 1:
        raise ConfigError("there is not enough memory to train on one image at a time; choose a smaller recipe")
    return replace(run, micro_batch=run.images_at_a_time // 2)


def memory_there_is(device: torch.device) -> int:
    """Return the bytes that a process may still get on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(available, _cgroup_room())


def _cgroup_room() -> int:
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        lines = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cached = int(lines["inactive_file"])  # of files, which the kernel gives up for whoever asks
        return 2**63 if limit == "max" else max(int(limit) - int(used) + cached, 0)
    except (OSError, ValueError, KeyError):
        return 2**63  # no cgroup, or one of another kind


def kinds(config: Config) -> list[Segment]:
    """Return the kinds of steps that a run has."""
    run = config.run
    return [phase.segment(run.batch_size, run.images_at_a_time) for phase in config.all_phases()]


def check_that_it_fits(config: Config, device: torch.device) -> None:
    """Make sure that no kind of step needs more memory than there is.

    Raises:
        ConfigError: one does, in whatever order it is used; the message says what would fit.
    """
    run, needs, there = config.run, Needs(device.type), memory_there_is(device)
    needed = needs.least(config)
    if needed > there:
        raise ConfigError(
            f"{config.recipe} needs at least {human_bytes(needed)} of memory for steps of {run.batch_size} images, "
            f"{run.images_at_a_time} at a time, decoded in slices: {run.slices}; there is {human_bytes(there)}. "
            f"{search(config, needs, there)}"
        )


class Needs:
    """What runs of a recipe need, in the step that needs most."""

    def __init__(self, device: str = "cpu") -> None:
        self._scaling = Scaling(device)

    def need(self, config: Config, kind: Segment) -> Need:
        """Tell what steps of a kind need, as the arena plans them.

        Raises:
            ArenaUnavailable: nothing can be planned here.
        """
        return self._scaling.need(config, kind)

    def peak(self, config: Config) -> int:
        """Tell the peak of the plans, or the least of all orders of the memory where nothing can be planned."""
        return self.least(config) if unusable() else max(self.need(config, kind).peak for kind in kinds(config))

    def least(self, config: Config) -> int:
        """Tell what no order of the memory can do without: quick, and at most a few percent below the peak."""
        return max(self._scaling.least(config, kind) for kind in kinds(config))

    def always(self, config: Config) -> int:
        """Tell what weights and the optimizer's state take, whatever the steps are."""
        return max(self._scaling.always(config, kind) for kind in kinds(config))


@dataclass(frozen=True, kw_only=True)
class Fits:
    """What fits into a limit, changed one at a time; None where nothing does, and for what need not change."""

    batch_size: int | None
    slices: int | None
    micro_batch: int | None

    def __str__(self) -> str:
        found = [
            f"{option} {value}"
            for option, value in (
                ("--slices", self.slices),
                ("--micro-batch", self.micro_batch),
                ("--batch-size", self.batch_size),
            )
            if value is not None
        ]
        return f"What fits: {', or '.join(found)}" if found else "Nothing fits; choose a smaller recipe"


def search(config: Config, needs: Needs, limit: int) -> Fits:
    """Find the largest batch that fits and, where the wanted one does not, the fewest slices or micro-batches.

    If the wanted batch fits in micro-batches, find the largest micro-batch instead: larger batches would only add
    micro-batches. Candidates are found by the least that is needed, and what is returned fits by its plan.
    """
    run = config.run
    at_a_time = run.images_at_a_time
    if needs.always(config) > limit:
        return Fits(batch_size=None, slices=None, micro_batch=None)

    def cost_of(least_or_peak: Callable[[Config], int], option: str) -> Callable[[int], int]:
        def cost(value: int) -> int:
            changed: dict[str, Any] = {option: value}
            return least_or_peak(replace(config, run=replace(run, **changed)))

        return cost

    def most(option: str, start: int, *, grow: bool) -> int | None:
        found = largest(cost_of(needs.least, option), limit, start, grow=grow)
        return found and largest(cost_of(needs.peak, option), limit, found, grow=False)

    batch = most("batch_size", run.batch_size, grow=True)
    if batch is not None and batch >= run.batch_size:
        if at_a_time < run.batch_size:
            return Fits(batch_size=None, slices=None, micro_batch=most("micro_batch", run.batch_size, grow=False))
        return Fits(batch_size=batch, slices=None, micro_batch=None)
    most_slices = min(at_a_time, _MOST_SLICES)
    slices = fewest(cost_of(needs.least, "slices"), limit, run.slices, most_slices)
    if slices is not None:
        peak = cost_of(needs.peak, "slices")
        slices = next((number for number in range(slices, most_slices + 1) if peak(number) <= limit), None)
    return Fits(batch_size=batch, slices=slices, micro_batch=most("micro_batch", at_a_time - 1, grow=False))


def fewest(cost: Callable[[int], int], limit: int, start: int, most: int) -> int | None:
    """Return the smallest number above start whose cost is within the limit; None if `most` is not.

    The cost must not rise.
    """
    low, high = start, min(2 * start, most)
    while low < high and cost(high) > limit:
        low, high = high, min(2 * high, most)
    if low >= high:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle, high)
    return high


def largest(cost: Callable[[int], int], limit: int, start: int, *, grow: bool = True) -> int | None:
    """Return the largest number, at most start unless it may grow, whose cost is within the limit; None if 1 is not.

    The cost must not fall. It is nearly linear, so few of them have to be computed.
    """
    cost = functools.cache(cost)
    if start < 1 or cost(1) > limit:
        return None
    low, high = 1, start
    while cost(high) <= limit:
        if not grow or high >= _MOST_IMAGES:
            return high
        low, high = high, 4 * high
    tries = 0
    while high - low > 1:
        tries += 1
        share = (limit - cost(low)) / (cost(high) - cost(low)) if tries % 3 else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        if cost(middle) <= limit:
            low = middle
        else:
            high = middle
    return low
