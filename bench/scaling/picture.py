"""Scaling drawn: measured steps beside the model's, and what the model says of many devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.scaling.measure import Measured
from bench.scaling.projection import RANKS, Device, Line
from bimkern.distributed.transfers import BUCKET_BYTES

_COMPUTE, _WAIT = "#4c78a8", "#e45756"
_TEXT: dict[str, Any] = {"fontsize": 8}


def draw(
    path: Path, measured: Sequence[Measured], title: str, projected: Mapping[str, tuple[Device, list[Line]]]
) -> None:
    """Draw a PNG.

    Args:
        path: of the file.
        measured: two ranks.
        title: of these, with all that they depend on.
        projected: the lines of many devices, by the name of what joins them.
    """
    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=120)
    bars, *curves = figure.subplots(1, 1 + len(projected), width_ratios=(1.3, *[1] * len(projected)))
    _draw_measured(bars, measured)
    bars.set_title(title, **_TEXT)
    for axes, (name, (device, lines)) in zip(curves, projected.items(), strict=True):
        _draw_lines(axes, lines)
        axes.set_title(
            f"model: {name}, {device.link.bytes_per_s / 1e9:g} GB/s, {1e6 * device.link.latency_s:g} µs a message,\n"
            f"{device.images} images of a step on each device, at {device.flops_per_s / 1e12:g} TFLOP/s,\n"
            f"end to end: buckets of {BUCKET_BYTES / 2**20:g} MiB; a stage: one bucket",
            **_TEXT,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_measured(axes: Axes, measured: Sequence[Measured]) -> None:
    for row, one in enumerate(measured):
        axes.barh(-row, one.compute_s, height=0.5, color=_COMPUTE, label=None if row else "compute")
        axes.barh(-row, one.wait_s, left=one.compute_s, height=0.5, color=_WAIT, label=None if row else "wait")
        axes.plot([one.predicted_s] * 2, [-row - 0.35, -row + 0.35], color="black", label=None if row else "model")
        axes.text(one.step_s, -row, f"  {overlap(one)} overlapped", va="center", fontsize=7)
    axes.set_yticks([-row for row in range(len(measured))], [one.method for one in measured], **_TEXT)
    axes.set_xlabel("seconds of a step, two ranks", **_TEXT)
    axes.set_xlim(right=1.25 * max(one.step_s for one in measured))
    axes.legend(loc="upper right", fontsize=7)


def overlap(one: Measured) -> str:
    """Return the share that overlaps with compute: none where a step waits for all of its communication, or longer."""
    return f"{one.overlapped:.0%}" if round(100 * one.overlapped) > 0 else "none"


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        axes.plot(
            list(line.efficiencies),
            [100 * share for share in line.efficiencies.values()],
            "o-",
            markersize=3,
            label=line.label,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS[::2], [f"{ranks}" for ranks in RANKS[::2]], **_TEXT)
    axes.set_ylim(0, 105)
    axes.set_xlabel("devices, with as many images on each", **_TEXT)
    axes.set_ylabel("images/s of a device, % of one alone", **_TEXT)
    axes.grid(linewidth=0.4)
    axes.legend(fontsize=7)
