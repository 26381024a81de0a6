"""The plan of a run of several ranks: what each needs, and for a pipeline how well its stages are balanced."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bimkern.data.step_layout import Segment
from bimkern.mim.model import Method
from bimkern.mim.operations import balanced_taps, stage_flops
from bimkern.train.config.run import Config, ConfigError
from bimkern.train.config.stage import StageConfig, check_stages
from bimkern.train.memory.budget import FittingOptions, MemoryEstimator, find_fitting, find_recompute
from bimkern.train.memory.ranks import RankEstimate, of_stages
from bimkern.train.memory.shares import of_images
from bimkern.units import human_bytes


@dataclass(frozen=True)
class Balance:
    """The taps of a method, those that balance its stages better, and the operations of every stage with either."""

    taps: tuple[int, ...]
    flops: tuple[int, ...]  # of an image in a step
    balanced_taps: tuple[int, ...]
    balanced_flops: tuple[int, ...]

    def __str__(self) -> str:
        words = f"stages take {_shares(self.flops)} of a step's operations"
        if max(self.balanced_flops) >= max(self.flops):
            return f"{words}; no other cut has a smaller largest stage"
        taps = ",".join(map(str, self.balanced_taps))
        return f"{words}; with --set method.taps={taps} they would take {_shares(self.balanced_flops)}"


@dataclass(frozen=True)
class SharedPlan:
    """What the ranks of a run need, as numbers and in words."""

    ranks: Sequence[RankEstimate]
    buffers: str  # what they are for
    balance: Balance | None

    @property
    def largest(self) -> RankEstimate:
        """The rank that needs most memory."""
        return max(self.ranks, key=lambda rank: rank.peak)

    def verdict(self, limit: int) -> str:
        """Say whether all ranks fit into a limit."""
        if self.largest.peak <= limit:
            return f"every rank fits into {human_bytes(limit)}"
        return f"{self.largest.name} is above {human_bytes(limit)}"

    def numbers(self, bandwidth: int | None) -> dict[str, Any]:
        """Return it as JSON, in bytes and, for a bandwidth in bytes per second, seconds."""
        each = [
            asdict(rank) | {"peak": rank.peak} | ({} if bandwidth is None else _seconds(rank, bandwidth))
            for rank in self.ranks
        ]
        return {"ranks": each} | ({} if self.balance is None else {"balance": asdict(self.balance)})

    def facts(self, bandwidth: int | None) -> dict[str, str]:
        """Return lines by their names."""
        return dict(self._facts(bandwidth))

    def _facts(self, bandwidth: int | None) -> Iterator[tuple[str, str]]:
        for rank in self.ranks:
            memory = rank.memory
            parts = ", ".join(
                f"{human_bytes(size)} {what}"
                for what, size in (
                    ("weights", memory.weights),
                    ("optimizer", memory.optimizer),
                    ("inputs", memory.inputs),
                    ("activations", memory.activations),
                    (self.buffers, rank.buffers),
                )
            )
            yield rank.name, f"{human_bytes(rank.peak)} at most: {parts}; sends {_sent(rank, bandwidth)}"
        if self.balance is not None:
            yield "balance", str(self.balance)


def plan_ranks(
    config: Config, segment: Segment, estimator: MemoryEstimator, num_ranks: int, *, pipeline: bool
) -> SharedPlan:
    """Plan the steps of a segment for several ranks.

    Raises:
        ConfigError: so many ranks cannot share them.
    """
    if num_ranks < 1:
        raise ConfigError(f"--ranks must be at least 1, got {num_ranks}")
    if not pipeline:
        layer = " and a layer" if config.run.shard == "full" else ""
        return SharedPlan(of_images(config, segment, estimator, num_ranks), f"buckets of gradients{layer}", None)
    check_stages(config, num_ranks)
    return SharedPlan(of_stages(config, segment, estimator), "tokens on their way", _balance(config.method))


class RankBudget:
    """What fits into the memory of the rank that needs most.

    What a rank has beside its own steps, such as buffers, is taken to be the same for other sizes of these.
    """

    def __init__(
        self, config: Config, plan: SharedPlan, estimator: MemoryEstimator, num_ranks: int, *, pipeline: bool
    ) -> None:
        """Take a run, the plan of its ranks, and whether each of them has a stage alone."""
        self._num_ranks, self._pipeline = num_ranks, pipeline
        self._estimator, rank = estimator, plan.largest
        share = replace(config.run, batch_size=-(-config.run.batch_size // num_ranks))
        stages = [StageConfig.of(config, stage) for stage in range(num_ranks)] if pipeline else []
        self._config = stages[plan.ranks.index(rank)] if pipeline else replace(config, run=share)
        self._beside = rank.peak - self._estimator.peak(self._config)
        self._others = [  # of a pipeline alone: elsewhere all ranks do the same
            (stage, other.peak - self._estimator.peak(stage))
            for stage, other in zip(stages, plan.ranks, strict=False)
            if other is not rank
        ]

    def fitting(self, limit: int) -> FittingOptions:
        """Find the options with which it fits into a limit, as find_fitting does for one process.

        In a pipeline, what leaves another rank above the limit is left out.
        """
        found = find_fitting(self._config, self._estimator, limit - self._beside)
        batch = found.batch_size
        if not self._pipeline:
            return replace(found, batch_size=batch and batch * self._num_ranks)
        if batch is not None:  # what is on its way grows with a micro-batch
            found = replace(found, batch_size=min(batch, self._config.run.batch_size))
        leaves: dict[str, Any] = {
            option: None for option, value in vars(found).items() if not self._others_fit(option, value, limit)
        }
        return replace(found, **leaves)

    def recompute(self, limit: int) -> str | None:
        """Find the least recomputation with which it fits, as find_recompute does for one process."""

        def others_fit(choice: str) -> bool:
            return self._others_fit("recompute", choice, limit)

        return find_recompute(self._config, self._estimator, limit - self._beside, also=others_fit)

    def _others_fit(self, option: str, value: object, limit: int) -> bool:
        changed: dict[str, Any] = {} if value is None else {option: value}
        return all(
            self._estimator.peak(replace(stage, run=replace(stage.run, **changed))) + beside <= limit
            for stage, beside in self._others
        )


def _balance(method: Method) -> Balance | None:
    """Compare the taps of a method with those that balance its stages; None where nothing counts the operations."""
    try:
        balanced = replace(method, taps=balanced_taps(method, len(method.taps)))
    except ValueError:
        return None
    stages = range(len(method.taps))
    given, better = (tuple(stage_flops(one, stage) for stage in stages) for one in (method, balanced))
    return Balance(method.taps, given, balanced.taps, better)


def _sent(rank: RankEstimate, bandwidth: int | None) -> str:
    words = f"{human_bytes(rank.sent)} a step, of which {human_bytes(rank.exposed)} cannot overlap with computing"
    if bandwidth is None:
        return words
    alone, overlapped = (1000 * seconds for seconds in _seconds(rank, bandwidth).values())
    return f"{words}: {alone:.3g} ms without overlap, {overlapped:.3g} ms with it at best"


def _seconds(rank: RankEstimate, bandwidth: int) -> dict[str, float]:
    """Return the time that a step's bytes take, and the part of it that is left where all overlaps that can."""
    return {"seconds": rank.sent / bandwidth, "exposed_seconds": rank.exposed / bandwidth}


def _shares(flops: Sequence[int]) -> str:
    return ", ".join(f"{100 * each / sum(flops):.0f} %" for each in flops)
