"""A bar for every step: the share of its time that each part takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bench.profiling.measure import Profile
from bench.profiling.parts import PARTS

_COLORS = ("#4c78a8", "#f58518", "#eeca3b", "#54a24b", "#e45756", "#9d755d", "#bab0ac", "#b279a2", "#d8d8d8")
_WRITTEN = 0.035  # shares that are wide enough for their number
_ROW = 0.3  # inches


def draw(path: Path, profiles: Sequence[Profile], provenance: Mapping[str, object]) -> None:
    """Draw profiles from the top, one row each, as a PNG."""
    figure = Figure(figsize=(9, 1.5 + _ROW * len(profiles)), layout="constrained", dpi=100)
    axes = figure.subplots()
    for row, profile in enumerate(profiles):
        left = 0.0
        for part, color in zip(PARTS, _COLORS, strict=True):
            share = profile.parts[part]
            axes.barh(-row, share, left=left, color=color, height=0.75, label=part if row == 0 else None)
            if share >= _WRITTEN:
                text = f"{100 * share:.0f}"
                axes.text(left + share / 2, -row, text, ha="center", va="center", fontsize=7)
            left += share
        axes.text(1.01, -row, f"{profile.step_s:.2f} s, {profile.matrix_share:.0%}", va="center", fontsize=7)
    axes.text(1.01, 0.8, "CPU time, of matrix speed", va="center", fontsize=7, style="italic")
    axes.set_yticks(range(0, -len(profiles), -1), [f"{p.recipe}  {p.dtype}" for p in profiles])
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(profiles) + 0.4, 1.1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(
        loc="outside lower center", ncols=len(PARTS), fontsize=7, frameon=False, columnspacing=1, handlelength=1
    )
    title = f"a training step of {profiles[0].batch_size} images, by part (numbers in %)"
    machine = "{device_name}, {threads} host threads, torch {torch}, commit {commit}, {date}".format_map(provenance)
    figure.suptitle(f"{title}\n{machine}", fontsize=8)
    figure.savefig(path)
