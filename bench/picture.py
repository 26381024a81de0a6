"""A picture of the newest results of a device: how near each op is to its ceiling, and its rivals' times beside it.

One shape of every op, pass, dtype and recipe is drawn, the first in the file; the file holds all.
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter, PercentFormatter

from bench.report import time_text
from bench.results import newest

Case = list[dict[str, str]]  # rows of one case, the measured provider first

_CEILINGS = {"copy": "#4c78a8", "matrix": "#b279a2"}
_OURS, _OTHERS = "#4c78a8", ("#9d9d9d", "#bdbdbd", "#d6d6d6", "#e6e6e6")
_BAR = 0.19  # inches
_TEXT: dict[str, Any] = {"fontsize": 7, "va": "center"}


def draw(path: Path) -> str:
    """Draw the CSV file at path beside it, as PNG, and return a line that says so.

    Raises:
        ResultsError: the file is missing, empty, or has other columns.
    """
    cases = _first_shapes(newest(path))
    bars = sum(len(case) for case in cases) + len(cases)
    figure = Figure(figsize=(11, 1.4 + _BAR * bars), layout="constrained", dpi=150)
    share, times = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    _draw_shares(share, cases)
    _draw_times(times, cases)
    figure.suptitle(_provenance([row for case in cases for row in case]), fontsize=9)
    target = path.with_suffix(".png")
    figure.savefig(target)
    return f"{target}: {len(cases)} cases"


def _first_shapes(cases: list[Case]) -> list[Case]:
    """Keep one case of every op, pass, dtype and whatever its shape names rather than counts, such as a recipe."""
    first: dict[tuple[str, ...], Case] = {}
    for case in cases:
        row = case[0]
        names = [part for part in row["shape"].split() if not part.rpartition("=")[2].isdigit()]
        machine = (row["device_name"], row["threads"])
        first.setdefault((*machine, row["op"], row["pass"], row["dtype"], *names), case)
    return list(first.values())


def _places(cases: list[Case]) -> list[list[int]]:
    """Give every bar its place from the top, with a gap between cases."""
    places, top = [], 0
    for case in cases:
        places.append([-(top + i) for i in range(len(case))])
        top += len(case) + 1
    return places


def _draw_shares(axes: Axes, cases: list[Case]) -> None:
    for case, places in zip(cases, _places(cases), strict=True):
        for row, place in zip(case, places, strict=True):
            if not row["share"]:
                continue
            value = float(row["share"])
            axes.barh(place, value, color=_CEILINGS[row["ceiling"]], alpha=1.0 if row is case[0] else 0.35)
            axes.text(value, place, f" {value:.0%}", **_TEXT)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xlim(0, max(1.15, *(1.15 * float(row["share"] or 0) for case in cases for row in case)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(
        "time at the ceiling / median time\nceiling of the same run: blue a large copy, purple a matrix product",
        fontsize=8,
    )
    axes.tick_params(labelsize=7)
    names = [row["provider"] for case in cases for row in case]
    axes.set_yticks([place for places in _places(cases) for place in places], names)


def _draw_times(axes: Axes, cases: list[Case]) -> None:
    ratios = [float(row["ratio"]) for case in cases for row in case]
    left = min(0.5, *ratios) / 1.5
    several = len({(case[0]["device_name"], case[0]["threads"]) for case in cases}) > 1
    for case, places in zip(cases, _places(cases), strict=True):
        first = case[0]
        title = f"{first['op']}  {first['pass']}  {first['dtype']}  {first['shape']}"
        if several:
            title += f"   ({first['device_name']}, host threads: {first['threads']})"
        axes.text(left, places[0] + 0.95, title, fontsize=7, fontweight="bold", va="center")
        for i, (row, place) in enumerate(zip(case, places, strict=True)):
            ratio = float(row["ratio"])
            axes.barh(place, ratio - left, left=left, color=_OTHERS[(i - 1) % len(_OTHERS)] if i else _OURS)
            axes.text(ratio, place, f" {ratio:.2f}x  {time_text(float(row['median_us']))}", **_TEXT)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xscale("log")  # one rival a hundred times slower would flatten all others
    axes.set_xlim(left, 3 * max(2.0, *ratios))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("median time relative to the first of its group, on a log scale (longer is slower)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_ylim(bottom=_places(cases)[-1][-1] - 1, top=2)


def _provenance(rows: list[dict[str, str]]) -> str:
    def every(column: str) -> str:
        return ", ".join(dict.fromkeys(row[column] for row in rows))

    dates = sorted({row["date"][:10] for row in rows})
    return (
        f"{every('device_name')} ({every('device')}, host threads: {every('threads')}), torch {every('torch')}\n"
        f"commit {every('commit')}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    )
