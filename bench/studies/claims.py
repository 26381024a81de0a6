"""What the papers found, and what cheaper decoders cost, held against a table: all follows from its numbers."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from scipy.stats import t as student

from bench.studies.methods import CHEAPER_BIMS, DEPTH, DEPTHS, SCRATCH, SCRATCH_SWIN, SWIN_DEPTH, alone
from bench.studies.table import METRICS, Key, Table, percent

Verdict = Literal["shows", "is reversed", "within noise", "contradicted", "not contradicted", "not evaluated"]
Relation = Literal["above", "level with", "no worse than"]
_CONFIDENCE = 0.95
_MARGIN = 0.015  # of an accuracy: what is worse by less is no worse

CRITERION = f"""\
A difference counts where the {_CONFIDENCE:.0%} interval of its mean over seeds leaves out zero, or for "no worse than"
-{100 * _MARGIN:g} points. It is about training again on these images, not others. A single seed is not evaluated."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One method is better than another, as good, or hardly worse."""

    first: Key
    second: Key
    relation: Relation
    metric: str
    source: str  # and its accuracies on ImageNet

    def verdict(self, table: Table) -> Verdict:
        first, second = self._accuracies(table)
        if min(len(first), len(second)) < 2:
            return "not evaluated"
        difference = statistics.mean(first) - statistics.mean(second)
        if self.relation == "no worse than":
            difference += _MARGIN
        significant = abs(difference) > half_width(first, second)
        if self.relation == "level with":
            return "contradicted" if significant else "not contradicted"
        if not significant:
            return "within noise"
        return "shows" if difference > 0 else "is reversed"

    def statement(self, table: Table) -> str:
        """Say what was found, what the table has, and what follows."""
        first, second = (percent(values) or "none" for values in self._accuracies(table))
        pair = f"{_name(self.first)} {self.relation} {_name(self.second)}"
        return f"{self.verdict(table):16}  {pair}, {METRICS[self.metric]}: {first} against {second}  [{self.source}]"

    def _accuracies(self, table: Table) -> tuple[list[float], list[float]]:
        """Return those of both methods, of all seeds; none where a run was cut short."""
        first, second = (table[key][self.metric] if key in table else [] for key in (self.first, self.second))
        return first, second


def half_width(first: Sequence[float], second: Sequence[float]) -> float:
    """Return half the interval of the difference of two means, by Welch's t; zero where no seed differs."""
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    return float(student.ppf((1 + _CONFIDENCE) / 2, freedom)) * math.sqrt(sum(parts))


def _name(key: Key) -> str:
    method, layers = key
    whole = SWIN_DEPTH if method.endswith("Swin") else DEPTH
    return method if layers == whole or method == alone(layers) else f"{method}, first {layers} layers"


def _vit(method: str) -> Key:
    return method, DEPTH


def _swin(method: str) -> Key:
    return f"{method}, Swin", SWIN_DEPTH


_MAE, _BIM, _LOCALMIM = _vit("MAE"), _vit("BIM"), _vit("LocalMIM")

# ImageNet accuracies of the BIM paper's table 3, ViT-B, behind each stage: BIM, MAE truncated, MAE trained alone.
_BIM_TABLE_3 = ((70.59, 65.88, 70.59), (79.06, 75.02, 79.04), (81.39, 79.46, 81.48), (82.98, 83.01, 83.01))


def _claim(first: Key, relation: Relation, second: Key, source: str, metric: str = "fine_tuned") -> Claim:
    return Claim(first=first, second=second, relation=relation, metric=metric, source=source)


def _depth_claims() -> Iterator[Claim]:
    for depth, (whole, truncated, independent) in zip(DEPTHS[:-1], _BIM_TABLE_3, strict=False):
        bim = ("BIM", depth)
        yield _claim(bim, "above", ("MAE", depth), f"BIM: {whole} and {truncated}")
        yield _claim(bim, "level with", (alone(depth), depth), f"BIM: {whole} and {independent}")
    for (shallow, low), (deep, high) in pairwise(zip(DEPTHS, _BIM_TABLE_3, strict=True)):
        yield _claim(("BIM", deep), "above", ("BIM", shallow), f"BIM: {high[0]} and {low[0]}")


_ON_VIT = (
    "MAE",
    "BIM",
    "BIM, growing mask",
    "LocalMIM",
    "LocalMIM, isolated",
    "FastMIM",
    "ViTFreeze",
    "SimMIM",
    "MaskFeat",
)
_ON_SWIN = ("SimMIM", "GreenMIM", "LocalMIM", "FastMIM")

CLAIMS = (
    *(_claim(_vit(name), "above", _vit(SCRATCH), "all papers; scratch has 82.3 in FastMIM") for name in _ON_VIT),
    *(_claim(_swin(name), "above", (SCRATCH_SWIN, SWIN_DEPTH), "all papers, Swin-B") for name in _ON_SWIN),
    _claim(_BIM, "level with", _MAE, "BIM, ViT-B: 82.98 and 83.01"),
    _claim(_MAE, "above", _BIM, "BIM, ViT-B: 66.25 and 66.08", metric="linear"),
    _claim(_vit("BIM, growing mask"), "above", _BIM, "BIM, ViT-L: 84.75 and 84.58"),
    _claim(_LOCALMIM, "above", _MAE, "LocalMIM: 84.0 and 83.6"),
    _claim(_LOCALMIM, "above", _vit("LocalMIM, isolated"), "LocalMIM: 83.3 and 83.0"),
    _claim(_vit("FastMIM"), "above", _MAE, "FastMIM: 83.8 and 83.6"),
    _claim(_LOCALMIM, "above", _vit("ViTFreeze"), "ViTFreeze: 83.2 and 82.5"),
    *_depth_claims(),
    *(
        _claim((name, depth), "no worse than", ("BIM", depth), "ours", metric=metric)
        for name in CHEAPER_BIMS
        for metric in ("fine_tuned", "linear")
        for depth in DEPTHS
    ),
)


def statements(table: Table) -> str:
    """State for every claim of which the table knows anything whether it shows it, and how many it does."""
    counts = Counter(claim.verdict(table) for claim in CLAIMS)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    lines = [claim.statement(table) for claim in CLAIMS if claim.first in table and claim.second in table]
    return "\n".join([CRITERION, *lines, f"Of {len(CLAIMS)} statements: {summary}."])
