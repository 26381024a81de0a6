"""The results drawn: every accuracy of every seed by method, and BIM by depth against two kinds of MAE."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.digits.methods import DEPTHS, METHODS, alone
from bench.digits.table import METRICS, PIXELS, Key, Table

_COLORS = {"knn": "#9d9d9d", "linear": "#b279a2", "finetuned": "#4c78a8"}
_BY_DEPTH: dict[str, list[Key]] = {
    "BIM": [("BIM", depth) for depth in DEPTHS],
    "MAE, truncated": [("MAE", depth) for depth in DEPTHS],
    "MAE of that depth alone": [*((alone(depth), depth) for depth in DEPTHS[:-1]), ("MAE", DEPTHS[-1])],
}


def draw(table: Table, path: Path, title: str) -> None:
    figure = Figure(figsize=(12, 4.2), layout="constrained", dpi=130)
    methods, *depths = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    _draw_methods(methods, table)
    for axes, metric in zip(depths, ("linear", "finetuned"), strict=True):
        _draw_depths(axes, table, metric)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_methods(axes: Axes, table: Table) -> None:
    whole = [(name, DEPTHS[-1]) for name, method in METHODS.items() if DEPTHS[-1] in method.depths]
    keys = [key for key in ((PIXELS, 0), *whole) if key in table]
    for row, key in enumerate(keys):
        for shift, (metric, color) in enumerate(_COLORS.items()):
            values = [100 * value for value in table[key][metric]]
            axes.plot(values, [-row - 0.22 * (shift - 1)] * len(values), "o", color=color, markersize=4, alpha=0.8)
    for metric, color in _COLORS.items():
        axes.plot([], [], "o", color=color, markersize=4, label=METRICS[metric])
    axes.set_yticks([-row for row in range(len(keys))], [name for name, _ in keys], fontsize=8)
    axes.set_xlabel("accuracy on the held-out half, %; a point for every seed", fontsize=8)
    axes.grid(axis="x", linewidth=0.4)
    axes.legend(fontsize=7, loc="lower left")


def _draw_depths(axes: Axes, table: Table, metric: str) -> None:
    for label, wanted in _BY_DEPTH.items():
        keys = [key for key in wanted if key in table]
        values = [[100 * value for value in table[key][metric]] for key in keys]
        means = [statistics.mean(of_seeds) for of_seeds in values]
        below = [mean - min(of_seeds) for mean, of_seeds in zip(means, values, strict=True)]
        above = [max(of_seeds) - mean for mean, of_seeds in zip(means, values, strict=True)]
        axes.errorbar(
            [layers for _, layers in keys], means, yerr=(below, above), marker="o", markersize=4, capsize=3, label=label
        )
    axes.set_title(f"{METRICS[metric]}, %: mean and range", fontsize=9)
    axes.set_xticks(DEPTHS)
    axes.set_xlabel("layers", fontsize=8)
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(fontsize=7)
