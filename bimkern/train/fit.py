"""Whether a run fits into memory, what would, and what to do when it did not."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bimkern.data.course import Stretch
from bimkern.train.config import Config, ConfigError, RunConfig
from bimkern.train.console import human_bytes
from bimkern.train.estimate import least_bytes
from bimkern.train.scaling import Scaling

Cost = Callable[[Config], int]  # bytes that a run needs at most

_CGROUP = Path("/sys/fs/cgroup")
# Of torch on a CPU, which has no type for it. Our own kernels pass them on since torch 2.13: before, a shortage there
# ends the run like any other error.
_TEXTS = ("can't allocate memory", "std::bad_alloc")
_MOST_IMAGES = 2**20
_FEW_SLICES = 4  # are counted as they are
_MOST_SLICES = 32  # so many already cost a fifth of the time


class OutOfMemory(RuntimeError):
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
        return 2**63 if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return 2**63  # no cgroup, or one of another kind


def kinds(config: Config) -> list[Stretch]:
    """Return the kinds of steps that a run has."""
    run = config.run
    return [phase.stretch(run.batch_size, run.images_at_a_time) for phase in config.all_phases()]


def check_that_it_fits(config: Config, device: torch.device) -> None:
    """Make sure that no kind of step needs more memory than there is.

    Raises:
        ConfigError: one does, in whatever order it is used; the message says what would fit.
    """
    run, scaling = config.run, Scaling()

    def least(config: Config) -> int:
        return max(scaling.least(config, kind) for kind in kinds(config))

    there = memory_there_is(device)
    needed = least(config) if run.slices > _FEW_SLICES else max(least_bytes(config, kind) for kind in kinds(config))
    if needed > there:
        raise ConfigError(
            f"{config.recipe} needs at least {human_bytes(needed)} of memory for steps of {run.batch_size} images, "
            f"{run.images_at_a_time} at a time, decoded in slices: {run.slices}; there is {human_bytes(there)}. "
            f"{search(config, least, there)}"
        )


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


def search(config: Config, cost: Cost, limit: int) -> Fits:
    """Find the largest batch that fits and, where the wanted one does not, the fewest slices or micro-batches."""
    run = config.run
    at_a_time = run.images_at_a_time

    def with_options(**options: Any) -> int:
        return cost(replace(config, run=replace(run, **options)))

    batch = largest(lambda size: with_options(batch_size=size), limit, run.batch_size)
    if batch is not None and batch >= run.batch_size:
        return Fits(batch_size=batch, slices=None, micro_batch=None)
    slices = fewest(lambda number: with_options(slices=number), limit, run.slices, min(at_a_time, _MOST_SLICES))
    micro = largest(lambda size: with_options(micro_batch=size), limit, at_a_time - 1, grow=False)
    return Fits(batch_size=batch, slices=slices, micro_batch=micro)


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
