"""The results: a row for every method, depth and seed, kept as CSV; and their means and spreads."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench.digits.methods import METHODS
from bench.results import ResultsError

METRICS = {"knn": "kNN", "linear": "linear", "finetuned": "fine-tuned"}
PIXELS = "pixels"  # not a method: the 64 values of a scan, for comparison

Key = tuple[str, int]  # a method, and the number of layers that are evaluated
Table = dict[Key, dict[str, list[float]]]  # the accuracies of all seeds, by metric


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoder of one seed. Accuracies are on the held-out half."""

    method: str
    layers: int = 0
    seed: int = 0
    rate: float | None = None  # of pre-training, chosen on the validation part with the first seed
    finetune_rate: float | None = None  # likewise
    knn: float
    linear: float
    finetuned: float | None = None
    steps: int = 0  # of pre-training
    finetune_steps: int = 0
    batch: int = 0
    images: int
    held_out: int


COLUMNS = [f.name for f in fields(Row)]


class Keeper:
    """A CSV file that grows with every row; each also states what its figures depend on."""

    def __init__(self, path: Path, provenance: Mapping[str, Any]) -> None:
        self._path, self._provenance = path, provenance
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow([*COLUMNS, *provenance])

    def add(self, rows: Iterable[Row]) -> None:
        with self._path.open("a", newline="") as file:
            for row in rows:
                values = [*asdict(row).values(), *self._provenance.values()]
                csv.writer(file).writerow([_text(value) for value in values])


def _text(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def at_the_edge(rows: Iterable[Mapping[str, str]], column: str, tried: Sequence[float]) -> list[str]:
    """List the methods whose rate in a column of the file is the lowest or the highest of those that were tried."""
    edges = {f"{rate:.6g}" for rate in (min(tried), max(tried))}
    return list(dict.fromkeys(row["method"] for row in rows if row[column] in edges))


def read(path: Path) -> tuple[Table, list[dict[str, str]]]:
    """Read a file of results: the accuracies, and the rows as they stand.

    Raises:
        ResultsError: there is no such file, or it holds no rows.
    """
    if not path.exists():
        raise ResultsError(f"{path}: no such file; `python -m bench.digits` writes one")
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
    if not rows:
        raise ResultsError(f"{path}: holds no rows")
    table: Table = {}
    for row in rows:
        accuracies = table.setdefault((row["method"], int(row["layers"])), {metric: [] for metric in METRICS})
        for metric, values in accuracies.items():
            if row[metric]:
                values.append(float(row[metric]))
    return table, rows


def heading(rows: list[dict[str, str]]) -> str:
    """Say in two lines what the rows of a file are."""
    trained = max(rows, key=lambda row: int(row["steps"]))
    seeds = len({row["seed"] for row in rows})
    counts = "{steps} steps of {batch} images on {images}, fine-tuned for {finetune_steps}; {held_out} held out"
    where = "{device_name}, torch {torch}, commit {commit}, {date}"
    return f"{counts.format_map(trained)}; seeds: {seeds}\n{where.format_map(trained)}"


def percent(values: list[float]) -> str:
    """Write the mean over seeds and their standard deviation, in per cent."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def lay_out(table: Table) -> str:
    """Lay out the table: methods as they are declared, whatever came first, each from its last layer up."""
    order = [PIXELS, *METHODS]
    keys = sorted(table, key=lambda key: (order.index(key[0]), -key[1]))
    cells = [["", "layers", *METRICS.values()]]
    cells += [[name, str(layers or ""), *map(percent, table[name, layers].values())] for name, layers in keys]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)
