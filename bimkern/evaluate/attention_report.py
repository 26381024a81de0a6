"""How encoders attend as a table, as JSON Lines and as a picture."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from bimkern.evaluate.attention_analysis import LayerAttention
from bimkern.evaluate.report import aligned
from bimkern.exporters.whole_file import whole
from bimkern.figures import legend_name, line_color, new_figure, plain, short_names, small_legend

Results = Mapping[str, Sequence[LayerAttention]]  # by run

_BY_HEAD = {
    "distance_px": "attention distance, px",
    "entropy_nats": "entropy, nats",
    "nmi": "normalized mutual information",
    "kl_heads_nats": "KL divergence to the other heads, nats",
}
_UNDEFINED = "KL is undefined (-) between layers whose queries attend to different keys, as in Swin's shifted windows."


def to_json_lines(results: Results) -> str:
    """Write one object per run and layer: means over heads, `..._by_head`, and KL and CKA with every layer."""
    lines = []
    for run, layers in results.items():
        for layer in layers:
            fields = asdict(layer)
            means = {name: _mean(fields[name]) for name in _BY_HEAD}
            by_head = {f"{name}_by_head": fields.pop(name) for name in _BY_HEAD}
            found = {"run": run, "layer": fields.pop("layer"), **means, **by_head, **fields}
            lines.append(json.dumps(_known(found), allow_nan=False))
    return "\n".join(lines)


def to_table(results: Results) -> str:
    """Lay results out, a line per run and layer; measures of heads as means, `-` where one is undefined."""
    first, *others = results
    cells = [["run", "layer", "distance", "entropy", "NMI", "KL heads", "KL previous", "CKA previous"]]
    cells[0] += [f"CKA {first}"] if others else []
    for run, layers in results.items():
        for i, layer in enumerate(layers):
            row = [run, str(layer.layer), _text(_mean(layer.distance_px), "{:.1f} px")]
            row += [_text(_mean(values), "{:.2f}") for values in (layer.entropy_nats, layer.nmi, layer.kl_heads_nats)]
            row += [
                _text(values[i - 1] if i else math.nan, "{:.2f}") for values in (layer.kl_layers_nats, layer.cka[run])
            ]
            alike = layer.cka[first]
            row += [_text(alike[i] if i < len(alike) else math.nan, "{:.2f}")] if others else []
            cells.append(row)
    undefined = any(math.isnan(kl) for layers in results.values() for layer in layers for kl in layer.kl_layers_nats)
    return "\n".join([aligned(cells), *(["", _UNDEFINED] if undefined else [])])


def draw(results: Results, path: Path) -> None:
    """Draw every measure against the layer, dots for heads, and the layers of all runs against each other, as a PNG.

    Raises:
        ConfigError: it cannot be written.
    """
    names = short_names(results)
    results = {names[run]: layers for run, layers in results.items()}
    figure = new_figure(max(14, 4.5 * (len(results) + 1)), 7)
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False)
    for axes, (name, label) in zip(top.subplots(1, len(_BY_HEAD)), _BY_HEAD.items(), strict=True):
        _draw_heads(axes, results, name)
        axes.set_title(label, fontsize=9)
    small_legend(top.axes[0])
    depths = {run: len(layers) for run, layers in results.items()}
    *of_runs, of_all = bottom.subplots(1, len(results) + 1)
    for axes, (run, layers) in zip(of_runs, results.items(), strict=True):
        _draw_matrix(axes, [layer.kl_layers_nats for layer in layers], {run: depths[run]})
        axes.set_title(f"{plain(run)}\nKL divergence of row to column, nats", fontsize=9)
    alike = [[*chain.from_iterable(layer.cka.values())] for layers in results.values() for layer in layers]
    _draw_matrix(of_all, alike, depths, highest=1)
    of_all.set_title("CKA of the features behind layers", fontsize=9)
    with whole(path) as scratch:
        figure.savefig(scratch, format="png", dpi=110)


def _draw_heads(axes: Any, results: Results, name: str) -> None:
    """Draw a measure against the layer: a dot for each head, a line through the means."""
    for number, (run, layers) in enumerate(results.items()):
        color = line_color(number, len(results))
        for layer in layers:
            values = getattr(layer, name)
            axes.plot([layer.layer] * len(values), values, ".", color=color, alpha=0.4, markersize=4)
        means = [_mean(getattr(layer, name)) for layer in layers]
        axes.plot([layer.layer for layer in layers], means, color=color, label=legend_name(run))
    axes.set_xlabel("layer; dots are heads")
    top = axes.dataLim.ymax
    axes.set_ylim(0, 1.1 * top if 0 < top < math.inf else None)  # by itself the highest dot would lie on the edge
    axes.locator_params(axis="x", integer=True)
    axes.grid(linewidth=0.4)


def _draw_matrix(
    axes: Any, rows: Sequence[Sequence[float]], depths: Mapping[str, int], highest: float | None = None
) -> None:
    """Draw layers against layers, those of one run after those of another."""
    shown = axes.imshow(rows, vmin=0, vmax=highest)
    axes.figure.colorbar(shown, ax=axes)
    ticks, labels = [], []
    for end, (run, depth) in zip(accumulate(depths.values()), depths.items(), strict=True):
        ticks += sorted({end - depth, end - 1})
        labels += [f"{plain(run)} 1" if len(depths) > 1 else "1", str(depth)][: min(depth, 2)]
        if end < len(rows):
            axes.axhline(end - 0.5, color="white", linewidth=1)
            axes.axvline(end - 0.5, color="white", linewidth=1)
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xticks(ticks, [label.rpartition(" ")[2] for label in labels], fontsize=7)
    axes.set_xlabel("layer")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _text(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _known(value: Any) -> Any:
    """Return what JSON has for a value: NaN is null."""
    if isinstance(value, Mapping):
        return {name: _known(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
