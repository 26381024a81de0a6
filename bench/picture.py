"""Two pictures of a device's newest results: its ops, and its training steps.

`<device>_ops.png` shows how close each op is to its ceiling, and its rivals' times, for one shape, dtype and pass.
`<device>_steps.png` shows the images per second of each recipe and its share of the ceiling; those that were timed in
CPU time too are shown in it, without a share. The CSV file has all rows.
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter, PercentFormatter

from bench.entries.step import NAME as STEP
from bench.report import time_text
from bench.results import newest

Case = list[dict[str, str]]  # rows of one case, the measured provider first

_CEILINGS = {"copy": "#4c78a8", "matrix": "#b279a2"}
_OURS, _OTHERS = "#4c78a8", ("#9d9d9d", "#bdbdbd", "#d6d6d6", "#e6e6e6")
_BAR = 0.155  # inches
_TEXT: dict[str, Any] = {"fontsize": 7, "va": "center"}


def draw(path: Path) -> str:
    """Draw the CSV file at path next to it, as PNG files, and return a line for each.

    Raises:
        ResultsError: the file is missing, empty, or has other columns.
    """
    cases = newest(path)
    ops, steps = _one_case_per_op(cases), [case for case in cases if case[0]["op"] == STEP]
    lines = []
    if ops:
        bars = sum(len(case) + 1 for case in ops)
        figure, (share, times) = _figure(ops, bars, width_ratios=(2, 3))
        _draw_shares(share, ops)
        _draw_times(times, ops)
        lines.append(_save(figure, path.with_name(f"{path.stem}_ops.png"), len(ops)))
    if steps:
        figure, (share, speed) = _figure(steps, sum(len(case) for case in steps), width_ratios=(2, 3))
        _draw_steps(share, speed, steps)
        lines.append(_save(figure, path.with_name(f"{path.stem}_steps.png"), len(steps)))
    return "\n".join(lines)


def _one_case_per_op(cases: list[Case]) -> list[Case]:
    """Keep the first shape and dtype of every op that has a ceiling, on every machine, with gradients if it has any.

    Whole steps are no ops.
    """
    kept: dict[tuple[str, ...], Case] = {}
    for case in cases:
        row = case[0]
        key = (row["device_name"], row["threads"], row["op"])
        if row["pass"] == "step" or not row["ceiling"]:
            continue
        if key not in kept or (_same_but_pass(kept[key][0], row) and row["pass"] == "fwd+bwd"):
            kept[key] = case
    return list(kept.values())


def _same_but_pass(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(one[column] == other[column] for column in ("shape", "dtype"))


def _figure(cases: list[Case], bars: int, *, width_ratios: tuple[int, int]) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(9, 1.4 + _BAR * bars), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=width_ratios)
    figure.suptitle(_provenance([row for case in cases for row in case]), fontsize=8)
    return figure, (left, right)


def _save(figure: Figure, target: Path, num_cases: int) -> str:
    figure.savefig(target)
    return f"{target}: {num_cases} {'case' if num_cases == 1 else 'cases'}"


def _draw_steps(share: Axes, speed: Axes, cases: list[Case]) -> None:
    rows = [row for case in cases for row in case]
    several = len({row["threads"] for row in rows}) > 1
    positions = [-i for i in range(len(rows))]
    for row, position in zip(rows, positions, strict=True):
        ours = row["provider"] == "ours"
        busy = bool(row["process_median_us"])  # then times on the wall, and what they are shares of, say little
        if row["share"] and not busy:
            value = float(row["share"])
            share.barh(position, value, color=_CEILINGS[row["ceiling"]], alpha=1.0 if ours else 0.35)
            share.text(value, position, f" {value:.0%}", **_TEXT)
        if row["items_per_s"]:
            value = float(row["items_per_s"])
            if busy:
                value *= float(row["median_us"]) / float(row["process_median_us"])
            speed.barh(position, value, color=_OURS if ours else _OTHERS[1])
            speed.text(value, position, f" {value:.3g}{' in CPU time' if busy else ''}", **_TEXT)
    recipes = [dict(part.partition("=")[::2] for part in row["shape"].split()) for row in rows]
    names = [
        _step_title(row, shape, several=several) if row["provider"] == "ours" else row["provider"]
        for row, shape in zip(rows, recipes, strict=True)
    ]
    share.set_yticks(positions, names)
    share.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    share.set_xlabel("share of the matrix product's speed", fontsize=8)
    sizes = dict.fromkeys(shape.get("B", "?") for shape in recipes)
    speed.set_xlabel(f"images/s, {' or '.join(sizes)} images per step", fontsize=8)
    for axes in (share, speed):
        axes.tick_params(labelsize=7)
        axes.margins(x=0.15, y=0.01)


def _step_title(row: dict[str, str], shape: dict[str, str], *, several: bool) -> str:
    """Name the recipe of a step, with what differs from the usual: bfloat16, and the threads where these differ."""
    details = [row["dtype"]] if row["dtype"] != "float32" else []
    details += [f"threads: {row['threads']}"] if several else []
    recipe = shape.get("recipe", row["shape"])
    return f"{recipe} ({', '.join(details)})" if details else recipe


def _positions(cases: list[Case]) -> list[list[int]]:
    """Give every bar its place from the top, with a gap between cases."""
    positions, top = [], 0
    for case in cases:
        positions.append([-(top + i) for i in range(len(case))])
        top += len(case) + 1
    return positions


def _draw_shares(axes: Axes, cases: list[Case]) -> None:
    for case, positions in zip(cases, _positions(cases), strict=True):
        for row, position in zip(case, positions, strict=True):
            if not row["share"]:
                continue
            value = float(row["share"])
            axes.barh(position, value, color=_CEILINGS[row["ceiling"]], alpha=1.0 if row is case[0] else 0.35)
            axes.text(value, position, f" {value:.0%}", **_TEXT)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xlim(0, max(1.15, *(1.15 * float(row["share"] or 0) for case in cases for row in case)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(
        "time at the ceiling / median time\nceiling of the same run: blue a large copy, purple a matrix product",
        fontsize=8,
    )
    axes.tick_params(labelsize=7)
    names = [row["provider"] for case in cases for row in case]
    axes.set_yticks([position for positions in _positions(cases) for position in positions], names)


def _draw_times(axes: Axes, cases: list[Case]) -> None:
    ratios = [float(row["ratio"]) for case in cases for row in case]
    left = min(0.5, *ratios) / 1.5
    several = len({(case[0]["device_name"], case[0]["threads"]) for case in cases}) > 1
    for case, positions in zip(cases, _positions(cases), strict=True):
        first = case[0]
        title = f"{first['op']}  {first['pass']}  {first['dtype']}  {first['shape']}"
        if several:
            title += f"   ({first['device_name']}, host threads: {first['threads']})"
        axes.text(left, positions[0] + 0.95, title, fontsize=7, fontweight="bold", va="center", in_layout=False)
        for i, (row, position) in enumerate(zip(case, positions, strict=True)):
            ratio = float(row["ratio"])
            axes.barh(position, ratio - left, left=left, color=_OTHERS[(i - 1) % len(_OTHERS)] if i else _OURS)
            axes.text(ratio, position, f" {ratio:.2f}x  {time_text(float(row['median_us']))}", **_TEXT)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.set_xscale("log")  # one rival a hundred times slower would flatten all others
    axes.set_xlim(left, 8 * max(2.0, *ratios))  # room for the text of the longest
    axes.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("median time relative to the first of its group, on a log scale (longer is slower)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_ylim(bottom=_positions(cases)[-1][-1] - 1, top=2)


def _provenance(rows: list[dict[str, str]]) -> str:
    def every(column: str) -> str:
        return ", ".join(dict.fromkeys(row[column] for row in rows))

    dates = sorted({row["date"][:10] for row in rows})
    return (
        f"{every('device_name')} ({every('device')}, host threads: {every('threads')}), torch {every('torch')}\n"
        f"commit {every('commit')}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    )
