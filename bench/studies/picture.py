"""A study drawn: every accuracy of every seed by method, and all layers of BIM, MAE and the Swins."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.studies.methods import DEPTH, DEPTHS, SWIN_DEPTH, alone, methods
from bench.studies.study import PIXELS, Result, Study
from bench.studies.table import METRICS, Key, Table, table_of

_BELOW: dict[str, Any] = {"fontsize": 7, "loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}  # where no data lie
_COLORS = {"knn": "#9d9d9d", "linear": "#b279a2", "fine_tuned": "#4c78a8"}
_ON_VIT: dict[str, list[Key]] = {
    **{name: [(name, depth) for depth in range(1, DEPTH + 1)] for name in ("scratch", "BIM", "MAE", "LocalMIM")},
    "MAE of that depth alone": [*((alone(depth), depth) for depth in DEPTHS[:-1]), ("MAE", DEPTH)],
}
_ON_SWIN: dict[str, list[Key]] = {
    name: [(f"{name}, Swin", depth) for depth in range(1, SWIN_DEPTH + 1)]
    for name in ("scratch", "SimMIM", "GreenMIM", "LocalMIM")
}

_BY_DEPTH = (("linear", "ViT", _ON_VIT), ("fine_tuned", "ViT", _ON_VIT), ("linear", "Swin", _ON_SWIN))


def draw(study: Study, results: Sequence[Result], path: Path, title: str) -> None:
    """Draw the results so far as a PNG."""
    table = table_of(study, results)
    figure = Figure(figsize=(16, 5), layout="constrained", dpi=130)
    of_methods, *of_depths = figure.subplots(1, 4, width_ratios=(2, 1, 1, 1))
    _draw_methods(of_methods, study, table, results[-1].chance)
    for axes, (metric, encoder, wanted) in zip(of_depths, _BY_DEPTH, strict=True):
        _draw_depths(axes, table, metric, wanted)
        axes.set_title(f"{encoder}, {METRICS[metric]}, %: mean and range", fontsize=9)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_methods(axes: Axes, study: Study, table: Table, chance: float) -> None:
    whole = [(name, method.encoder.depth) for name, method in methods(study.source.side).items() if not method.rates_of]
    keys = [key for key in ((PIXELS, 0), *whole) if key in table]
    for row, key in enumerate(keys):
        for shift, (metric, color) in enumerate(_COLORS.items()):
            values = [100 * value for value in table[key][metric]]
            axes.plot(values, [-row - 0.22 * (shift - 1)] * len(values), "o", color=color, markersize=4, alpha=0.8)
    for metric, color in _COLORS.items():
        axes.plot([], [], "o", color=color, markersize=4, label=METRICS[metric])
    axes.set_yticks([-row for row in range(len(keys))], [name for name, _ in keys], fontsize=8)
    axes.axvline(100 * chance, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xlabel("accuracy on the held-out images, %; a point for every seed", fontsize=8)
    axes.grid(axis="x", linewidth=0.4)
    axes.legend(**_BELOW, ncols=4)


def _draw_depths(axes: Axes, table: Table, metric: str, lines: dict[str, list[Key]]) -> None:
    for label, wanted in lines.items():
        keys = [key for key in wanted if key in table and table[key][metric]]
        if not keys:
            continue
        values = [[100 * value for value in table[key][metric]] for key in keys]
        means = [statistics.mean(of_seeds) for of_seeds in values]
        below = [mean - min(of_seeds) for mean, of_seeds in zip(means, values, strict=True)]
        above = [max(of_seeds) - mean for mean, of_seeds in zip(means, values, strict=True)]
        axes.errorbar(
            [layers for _, layers in keys], means, yerr=(below, above), marker="o", markersize=4, capsize=3, label=label
        )
    axes.set_xlabel("layers", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", linewidth=0.4)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**_BELOW, ncols=2)
