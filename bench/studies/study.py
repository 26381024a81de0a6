"""A study: which methods learn how long, and which trials its results so far leave to be run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.studies.data import Source
from bench.studies.digits import Digits
from bench.studies.methods import StudyMethod, methods
from bench.studies.photographs import Photographs
from bench.studies.rates import RateSearch, best_of

PIXELS = "pixels"  # not a method: the images themselves, for comparison
_FIRST_SEED = 0  # with which rates are chosen
_RATES = RateSearch(start=(1e-3, 2e-3, 4e-3), lowest=6.25e-5, highest=6.4e-2)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Pre-training by a method with one rate and seed, and the probes of what it leaves."""

    method: str
    seed: int = _FIRST_SEED
    rate: float | None = None  # peak; None: no pre-training


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a trial ended with. Accuracies are on the held-out images, but for that which chooses the rate."""

    trial: Trial
    validation: float = 0.0  # of a linear probe behind the last layer, on the validation part; 0 where it diverged
    knn: Mapping[int, float] = field(default_factory=dict)  # by depth; none where it diverged
    linear: Mapping[int, float] = field(default_factory=dict)
    chance: float = 0.0
    cpu_s: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the figures depend on

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        values = asdict(self)
        return {**values.pop("trial"), **values}


def result_of(record: Mapping[str, Any]) -> Result:
    """Read a result back.

    Raises:
        KeyError, TypeError, ValueError: the record is of another kind.
    """
    values = dict(record)
    trial = Trial(method=values.pop("method"), seed=values.pop("seed"), rate=values.pop("rate"))
    knn, linear = ({int(depth): value for depth, value in values.pop(name).items()} for name in ("knn", "linear"))
    return Result(trial=trial, knn=knn, linear=linear, **values)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that decides about the results of a study."""

    name: str
    source: Source
    chosen: tuple[str, ...] = ()  # methods; empty: all
    seeds: int = 3
    steps: int = 800  # of pre-training
    batch_size: int = 64
    rates: RateSearch = _RATES
    neighbors: int = 10
    probe_steps: int = 1000

    def methods(self) -> dict[str, StudyMethod]:
        """Return the chosen methods, by name."""
        known = methods(self.source.side)
        return {name: method for name, method in known.items() if not self.chosen or name in self.chosen}

    def pending(self, results: Sequence[Result]) -> Iterator[Trial]:
        """Yield the trials that can be run now, given the results so far; none at the end."""
        done = {result.trial for result in results}
        wanted = (trial for method in self.methods().values() for trial in self._trials(method, results))
        for trial in (Trial(method=PIXELS), *wanted):
            if trial not in done:
                yield trial

    def _trials(self, method: StudyMethod, results: Sequence[Result]) -> Iterator[Trial]:
        first = Trial(method=method.name)
        if method.config is not None:
            scores = scores_of(results, method.rates_of or method.name)
            if untried := self.rates.untried(scores):
                if not method.rates_of:
                    yield from (replace(first, rate=rate) for rate in untried)
                return
            first = replace(first, rate=best_of(scores))
        yield from (replace(first, seed=seed) for seed in range(self.seeds))


def scores_of(results: Sequence[Result], method: str) -> dict[float, float]:
    """Return what a method reached on the validation part with the first seed, by rate."""
    tried = (result for result in results if result.trial.method == method and result.trial.seed == _FIRST_SEED)
    return {result.trial.rate: result.validation for result in tried if result.trial.rate is not None}


STUDIES: Mapping[str, Study] = {
    "digits": Study(name="digits", source=Digits()),
    "photographs": Study(name="photographs", source=Photographs()),
}
