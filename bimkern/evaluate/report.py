"""Results by depth as a table, as JSON Lines and as a picture."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bimkern.evaluate.depths import DepthResult
from bimkern.exporters.whole_file import whole
from bimkern.figures import legend_name, line_color, new_figure, short_names, small_legend

Results = Mapping[str, Sequence[DepthResult]]  # by run


def to_json_lines(results: Results) -> str:
    """Write one object per run and depth: `knn` is the accuracy with the first number of neighbors, `knn_by_k` all.

    `linear` is null where the linear probe diverged.
    """
    lines = []
    for run, depths in results.items():
        for result in depths:
            fields = asdict(result)
            by_k = fields.pop("knn")
            fields["linear"] = None if math.isnan(result.linear) else result.linear
            first = next(iter(by_k.values()))
            lines.append(json.dumps({"run": run, **fields, "knn": first, "knn_by_k": by_k}, allow_nan=False))
    return "\n".join(lines)


def to_table(results: Results) -> str:
    """Lay results out, a line per run and depth; accuracies are in percent."""
    neighbors = next(iter(results.values()))[0].knn
    cells = [["run", "depth", "parameters", "latency", *(f"kNN k={k}" for k in neighbors), "linear", "chance"]]
    for run, depths in results.items():
        for result in depths:
            accuracies = (*result.knn.values(), result.linear, result.chance)
            cost = str(result.depth), f"{result.parameters / 1e6:.2f} M", f"{result.latency_ms:.2f} ms"
            shown = ("diverged" if math.isnan(accuracy) else f"{accuracy:.1%}" for accuracy in accuracies)
            cells.append([run, *cost, *shown])
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Lay a table out as text: the first column begins, the others end below each other."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def draw(results: Results, path: Path) -> None:
    """Draw the accuracy against depth and against latency, as a PNG.

    Raises:
        ConfigError: it cannot be written.
    """
    names, figure = short_names(results), new_figure(11, 4.2)
    by_depth, by_latency = figure.subplots(1, 2, sharey=True)
    for number, (run, depths) in enumerate(results.items()):
        k = next(iter(depths[0].knn))
        for name, style, values in (
            ("linear", "o-", [100 * result.linear for result in depths]),
            (f"kNN, k={k}", "s--", [100 * result.knn[k] for result in depths]),
        ):
            look = {
                "color": line_color(number, len(results)),
                "markersize": 4,
                "label": f"{legend_name(names[run])}: {name}",
            }
            by_depth.plot([result.depth for result in depths], values, style, **look)
            by_latency.plot([result.latency_ms for result in depths], values, style, **look)
        for result in depths:
            text = f"{result.parameters / 1e6:.3g} M"
            place = (result.latency_ms, 100 * (result.knn[k] if math.isnan(result.linear) else result.linear))
            by_latency.annotate(text, place, (0, 5), textcoords="offset points", ha="center", fontsize=6)
    chance = 100 * next(iter(results.values()))[0].chance
    for axes, label in ((by_depth, "layers"), (by_latency, "latency of one image, ms; labels are parameters")):
        axes.axhline(chance, color="gray", linewidth=0.8, linestyle=":")
        axes.annotate("chance", (0.01, chance), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points")
        axes.set_xlabel(label)
        axes.grid(linewidth=0.4)
    by_depth.set_ylabel("accuracy on test images, %")
    by_depth.set_xticks(sorted({result.depth for depths in results.values() for result in depths}))
    small_legend(by_depth)
    with whole(path) as scratch:
        figure.savefig(scratch, format="png", dpi=130)
