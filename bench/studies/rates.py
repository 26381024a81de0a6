"""The search for a learning rate: the grid grows until the best rate lies inside it."""

from collections.abc import Mapping
from dataclasses import dataclass

_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """Peak learning rates to begin with, each twice the one before, and how far the search may go."""

    start: tuple[float, ...]
    lowest: float
    highest: float

    def untried(self, scores: Mapping[float, float]) -> list[float]:
        """Return the rates to try next by the scores of those that were tried; none once the search is over.

        It is over once both neighbors of the best rate were tried, or lie beyond what may be tried.
        """
        if missing := [rate for rate in self.start if rate not in scores]:
            return missing
        best = best_of(scores)
        neighbors = (best / _FACTOR, best * _FACTOR)
        return [rate for rate in neighbors if self.lowest <= rate <= self.highest and rate not in scores]

    def at_limit(self, rate: float) -> bool:
        """Return whether a rate has a neighbor beyond what may be tried, so that another may be better."""
        return rate / _FACTOR < self.lowest or rate * _FACTOR > self.highest


def best_of(scores: Mapping[float, float]) -> float:
    """Return the rate with the highest score, the lowest of equals."""
    return max(sorted(scores), key=lambda rate: scores[rate])
