"""The memory budget: whether a run fits into memory, which options make it fit, and what out-of-memory looks like."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from bimkern.arena import unusable
from bimkern.data.step_layout import Segment
from bimkern.distributed.launch import local_world_size
from bimkern.errors import BimkernError, RunError
from bimkern.mim import recompute
from bimkern.train.config.run import Config, ConfigError, RunConfig, RunOptions, TrainingConfig
from bimkern.train.memory import cgroup
from bimkern.train.memory.estimate import MemoryEstimate
from bimkern.train.memory.extrapolate import Extrapolation
from bimkern.units import human_bytes

logger = logging.getLogger("bimkern.train")

Options = TypeVar("Options", bound=RunOptions)

# Torch has no exception type for it on a CPU. Our own kernels pass these texts on from torch 2.13; with an older torch,
# out of memory in a kernel ends the run like any other error.
_TEXTS = ("can't allocate memory", "std::bad_alloc")
_ONEDNN = ("could not create a primitive", "could not execute a primitive")  # all that it says when memory is short
_MAX_IMAGES = 2**20  # of a batch to search for
_MAX_SLICES = 32  # slow a step down by a fifth


class OutOfMemory(RunError, RuntimeError):
    """A step ran out of memory; the message names its micro-batch."""

    of_all_ranks = True


class UpdateOutOfMemory(RunError, RuntimeError):
    """One of several ranks ran out of memory in an update that others have made; the message names a remedy."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return str(error) in _ONEDNN or any(text in str(error) for text in _TEXTS)


def halve_micro_batch(run: Options, num_ranks: int = 1) -> Options:
    """Return the options with half the micro-batch, of each of several ranks, and the same batch.

    Raises:
        OutOfMemory: the micro-batch is one image.
    """
    at_a_time = min(run.images_at_a_time, -(-run.batch_size // num_ranks))
    if at_a_time == 1:
        raise OutOfMemory("there is not enough memory to train on one image at a time; choose a smaller recipe")
    return replace(run, micro_batch=at_a_time // 2)


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    in_group = cgroup.room()
    return available if in_group is None else min(available, in_group)


def segments(config: TrainingConfig) -> list[Segment]:
    """Return one segment for every phase of a run."""
    run = config.run
    return [phase.segment(run.batch_size, run.images_at_a_time) for phase in config.all_phases()]


def check_memory(
    config: TrainingConfig, device: torch.device, num_ranks: int = 1, *, spares: Callable[[], int] = lambda: 0
) -> None:
    """Check that steps of every phase fit into the available memory; warn where that cannot be estimated.

    Args:
        config: of the run.
        device: of this rank.
        num_ranks: that share every step.
        spares: returns the bytes of weights, gradients and optimizer state that other ranks have in its place, at most,
            less those of buffers for what they exchange.

    Raises:
        ConfigError: they do not; the message suggests options that fit.
    """
    config = replace(config, run=replace(config.run, batch_size=-(-config.run.batch_size // num_ranks)))
    run, estimator, available = config.run, MemoryEstimator(device.type), available_memory(device)
    if device.type == "cpu":
        available //= local_world_size()  # who all need as much
    try:
        needed, spared = estimator.lower_bound(config), spares()
    except BimkernError:
        raise
    except Exception as error:  # whatever a piece of the user's own does with tensors that have no values
        logger.warning("memory cannot be estimated for these pieces (%s: %s)", type(error).__name__, error)
        return
    available += spared
    if needed > available:
        sliced = f", decoded in slices: {run.slices}" if isinstance(run, RunConfig) else ""
        fitting, shared = find_fitting(config, estimator, available), ""
        more = f", with the {human_bytes(spared)} that other ranks spare it" if spared > 0 else ""
        more = f", without the {human_bytes(-spared)} that sums over ranks take" if spared < 0 else more
        if num_ranks > 1:
            shared = f" of each of {num_ranks} ranks"
            fitting = replace(fitting, batch_size=fitting.batch_size and fitting.batch_size * num_ranks)
        raise ConfigError(
            f"{config.recipe} needs at least {human_bytes(needed)} of memory for steps{shared} of {run.batch_size} "
            f"images, {run.images_at_a_time} at a time{sliced}; {human_bytes(available)} are available{more}. {fitting}"
        )


class MemoryEstimator:
    """Estimate the memory of runs of a recipe: of the phase that needs most."""

    def __init__(self, device: str = "cpu") -> None:
        self._extrapolation = Extrapolation(device)

    def estimate(self, config: TrainingConfig, segment: Segment) -> MemoryEstimate:
        """Estimate the steps of one segment, as the arena plans them.

        Raises:
            ArenaUnavailable: the arena cannot plan on this machine.
        """
        return self._extrapolation.estimate(config, segment)

    def peak(self, config: TrainingConfig) -> int:
        """Return the peak of the plans, or its lower bound where the arena cannot plan."""
        if unusable():
            return self.lower_bound(config)
        return max(self.estimate(config, segment).peak for segment in segments(config))

    def lower_bound(self, config: TrainingConfig) -> int:
        """Return the lower bound of the peak for any placement: fast, and within a few percent of the peak."""
        return max(self._extrapolation.lower_bound(config, segment) for segment in segments(config))

    def static_bytes(self, config: TrainingConfig) -> int:
        """Return the bytes of the weights and of the optimizer state."""
        return max(self._extrapolation.static_bytes(config, segment) for segment in segments(config))


@dataclass(frozen=True, kw_only=True)
class FittingOptions:
    """Values that fit into a limit, each as the only change; None where none fits or no change is needed."""

    batch_size: int | None
    slices: int | None
    micro_batch: int | None
    recompute: str | None = None

    def __str__(self) -> str:
        found = [
            f"{option} {value}"
            for option, value in (
                ("--slices", self.slices),
                ("--recompute", self.recompute),
                ("--micro-batch", self.micro_batch),
                ("--batch-size", self.batch_size),
            )
            if value is not None
        ]
        return f"Options that fit: {', or '.join(found)}" if found else "No option fits; choose a smaller recipe"


def find_fitting(config: TrainingConfig, estimator: MemoryEstimator, limit: int) -> FittingOptions:
    """Find the largest batch that fits and, if the given one does not, what makes it fit.

    That is the fewest slices, all layers recomputed, or the largest micro-batch.

    If the given batch fits in several micro-batches, find only the largest micro-batch: a larger batch would just have
    more of them. The search uses lower bounds; the results are verified by their plans.
    """
    run = config.run
    at_a_time = run.images_at_a_time
    if estimator.static_bytes(config) > limit:
        return FittingOptions(batch_size=None, slices=None, micro_batch=None)

    def cost_of(bytes_of: Callable[[TrainingConfig], int], option: str) -> Callable[[int], int]:
        def cost(value: int) -> int:
            changed: dict[str, Any] = {option: value}
            return bytes_of(replace(config, run=replace(run, **changed)))

        return cost

    def best(option: str, start: int, *, grow: bool) -> int | None:
        found = largest(cost_of(estimator.lower_bound, option), limit, start, grow=grow)
        return found and largest(cost_of(estimator.peak, option), limit, found, grow=False)

    batch = best("batch_size", run.batch_size, grow=True)
    if batch is not None and batch >= run.batch_size:
        if at_a_time < run.batch_size:
            return FittingOptions(
                batch_size=None, slices=None, micro_batch=best("micro_batch", run.batch_size, grow=False)
            )
        return FittingOptions(batch_size=batch, slices=None, micro_batch=None)
    slices, max_slices = None, min(at_a_time, _MAX_SLICES)
    if isinstance(run, RunConfig):
        slices = fewest(cost_of(estimator.lower_bound, "slices"), limit, run.slices, max_slices)
    if slices is not None:
        peak = cost_of(estimator.peak, "slices")
        slices = next((number for number in range(slices, max_slices + 1) if peak(number) <= limit), None)
    micro_batch = best("micro_batch", at_a_time - 1, grow=False)
    recomputed = find_recompute(config, estimator, limit, only=(recompute.LAYERS,))
    return FittingOptions(batch_size=batch, slices=slices, micro_batch=micro_batch, recompute=recomputed)


def find_recompute(
    config: TrainingConfig,
    estimator: MemoryEstimator,
    limit: int,
    *,
    only: Sequence[str] | None = None,
    also: Callable[[str], bool] = lambda choice: True,
) -> str | None:
    """Return the --recompute with the least work that makes a run fit, none if it fits as it is; None if none does.

    Args:
        config: of the run.
        estimator: of its memory; every choice takes a trace.
        limit: in bytes.
        only: choices to try, in this order; by default none, numbers of layers that grow by a half, and all of them.
        also: returns whether all else fits as well.
    """
    run = config.run
    if not (isinstance(config, Config) and isinstance(run, RunConfig)):
        return None
    if only is None:
        longest = max(b - a for a, b in pairwise((-1, *config.method.taps)))
        numbers = [1]
        while (more := max(numbers[-1] + 1, numbers[-1] * 3 // 2)) < longest:
            numbers.append(more)
        only = (recompute.NONE, *(str(number) for number in numbers if number < longest), recompute.LAYERS)
    for choice in only:
        if estimator.peak(replace(config, run=replace(run, recompute=choice))) <= limit and also(choice):
            return choice
    return None


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
        if not grow or high >= _MAX_IMAGES:
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
