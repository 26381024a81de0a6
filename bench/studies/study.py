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
FIRST_SEED = 0  # with which rates are chosen
_RATES = RateSearch(start=(1e-3, 2e-3, 4e-3), lowest=6.25e-5, highest=6.4e-2)
_FINE_TUNING_RATES = RateSearch(start=(1e-3, 2e-3), lowest=6.25e-5, highest=1.6e-2)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    depth: int  # layers of the encoder
    rate: float  # peak
    selects: bool = False  # on a part of the training images; the other part tells how good the rate is


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Pre-training by a method with one rate and seed, and then either probes of the encoder or fine-tuning."""

    method: str
    seed: int = FIRST_SEED
    rate: float | None = None  # peak; None: no pre-training
    fine_tuning: FineTuning | None = None  # None: probes, at all depths

    @property
    def name(self) -> str:
        """What it is, as a name of files."""
        words = [self.method, *([f"rate {self.rate:g}"] if self.rate else []), f"seed {self.seed}"]
        if self.fine_tuning is not None:
            words += [f"{self.fine_tuning.depth} layers", f"rate {self.fine_tuning.rate:g}"]
            words += ["to select"] if self.fine_tuning.selects else []
        return ", ".join(words).replace(",", "").replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a trial ended with. Accuracies are on the held-out images, but for that which chooses the rate."""

    trial: Trial
    validation: float = 0.0  # on the validation part; of probes, of a linear one behind the last layer
    knn: Mapping[int, float] = field(default_factory=dict)  # by depth; none where training diverged
    linear: Mapping[int, float] = field(default_factory=dict)
    fine_tuned: float | None = None
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
    named = {name: values.pop(name) for name in ("method", "seed", "rate")}
    given = values.pop("fine_tuning")
    trial = Trial(**named, fine_tuning=None if given is None else FineTuning(**given))
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
    searched_by: float | None = None  # the rate of fine-tuning by which that of pre-training is chosen; None: probes
    fine_tuning_steps: int = 150
    fine_tuning_rates: RateSearch = _FINE_TUNING_RATES
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

    def scores_of(self, results: Sequence[Result], method: str) -> dict[float, float]:
        """Return what encoders reached on the validation part with the first seed, by the rate of pre-training."""
        if self.searched_by is None:
            return _probed(results, method)
        tuned = ((result.trial, result.validation) for result in results if _selects(result.trial, method))
        return {trial.rate: score for trial, score in tuned if trial.rate and _tuned_at(trial) == self.searched_by}

    def _trials(self, method: StudyMethod, results: Sequence[Result]) -> Iterator[Trial]:
        first, own = Trial(method=method.name), not method.rates_of
        if method.config is not None:
            scores = self.scores_of(results, method.rates_of or method.name)
            if untried := self.rates.untried(scores):
                yield from self._search(method, untried, results) if own else ()
                return
            first = replace(first, rate=best_of(scores))
        yield from (replace(first, seed=seed) for seed in range(self.seeds))
        scores = fine_tuning_scores_of(results, method.rates_of or method.name, first.rate)
        if untried := self.fine_tuning_rates.untried(scores):
            yield from (_selecting(first, method, rate) for rate in untried if own)
            return
        for depth in method.depths:
            trial = replace(first, fine_tuning=FineTuning(depth=depth, rate=best_of(scores)))
            yield from (replace(trial, seed=seed) for seed in range(self.seeds))

    def _search(self, method: StudyMethod, rates: Sequence[float], results: Sequence[Result]) -> Iterator[Trial]:
        probed = _probed(results, method.name)
        for rate in rates:
            trial = Trial(method=method.name, rate=rate)
            if rate not in probed:
                yield trial  # which keeps its encoder
            elif self.searched_by is not None:
                yield _selecting(trial, method, self.searched_by)


def _probed(results: Sequence[Result], method: str) -> dict[float, float]:
    """Return what a linear probe reached on the validation part with the first seed, by the rate of pre-training."""
    trials = ((result.trial, result.validation) for result in results)
    return {
        trial.rate: score
        for trial, score in trials
        if (trial.method, trial.seed, trial.fine_tuning) == (method, FIRST_SEED, None) and trial.rate is not None
    }


def fine_tuning_scores_of(results: Sequence[Result], method: str, rate: float | None) -> dict[float, float]:
    """Return what fine-tuning of all layers reached on the validation part with the first seed, by its rate.

    Args:
        results: so far.
        method: of pre-training.
        rate: of pre-training; None: it had none.
    """
    tuned = ((result.trial, result.validation) for result in results if _selects(result.trial, method))
    return {_tuned_at(trial): score for trial, score in tuned if trial.rate == rate}


def _selecting(trial: Trial, method: StudyMethod, rate: float) -> Trial:
    return replace(trial, fine_tuning=FineTuning(depth=method.encoder.depth, rate=rate, selects=True))


def _selects(trial: Trial, method: str) -> bool:
    return trial.method == method and trial.fine_tuning is not None and trial.fine_tuning.selects


def _tuned_at(trial: Trial) -> float:
    assert trial.fine_tuning is not None
    return trial.fine_tuning.rate


STUDIES: Mapping[str, Study] = {
    "digits": Study(name="digits", source=Digits()),
    "photographs": Study(name="photographs", source=Photographs(), fine_tuning_steps=300, searched_by=4e-3),
}
