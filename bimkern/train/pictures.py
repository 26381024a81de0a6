"""The pictures of a run: what every stage predicts, curves, memory over time.

Whatever draws takes numbers on the host alone, so that it may run in the background.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from bimkern.mim.model import MIM
from bimkern.mim.reconstruct import StageReconstruction, masked, reconstruct, stage_name

_DPI = 120
_GAP = 0.05  # around a picture, of its side
_LINE = 0.17  # inches, of the title and the note
_LETTERS = 13  # an inch


@dataclass(frozen=True)
class Column:
    """Pictures that are still to be drawn, one an image."""

    title: str
    draw: Callable[[int, int], Tensor]  # from the row and S: [C, S, S] in [0, 1], on the host


@dataclass(frozen=True)
class Reconstructions:
    """Original, masked, and what every stage predicts; the note says whose statistics were used."""

    columns: list[Column]
    num_rows: int
    size: int  # S of a picture, in pixels
    note: str


def predict(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> Reconstructions:
    """Predict what is hidden of images [B, C, H, W] uint8; where a target needs statistics, with both choices."""
    results = reconstruct(model, images, draw_ids, seed)
    columns, before = [_photographs("original", images / 255)], None
    for stage, result in enumerate(results):
        if before is None or not torch.equal(before, result.view.hidden):
            columns.append(_photographs(_count(result.view.hidden), masked(model, images, result.view)))
        before = result.view.hidden
        columns += _stage_columns(stage_name(model.method, stage), result)
    size = max(result.reader.size(result.truth) for result in results)
    note = "\n".join(dict.fromkeys(result.reader.note for result in results))
    return Reconstructions(columns, len(images), size, note)


def _photographs(title: str, pixels: Tensor) -> Column:
    host = pixels.cpu()
    return Column(title, lambda row, size: adaptive_avg_pool2d(host[row], size))


def _count(hidden: Tensor) -> str:
    counts = hidden.sum(1).int().unique().tolist()
    return f"{'-'.join(map(str, counts[:1] + counts[1:][-1:]))} of {hidden.shape[1]} hidden"


def _stage_columns(name: str, result: StageReconstruction) -> list[Column]:
    """Return the target of a stage, where that is no photograph, and its prediction with each choice of statistics."""
    reader = result.reader

    def column(title: str, places: Tensor) -> Column:
        host = places.float().cpu()
        return Column(title, lambda row, size: reader.draw(host[row], size))

    title = reader.target_name(result.truth)
    columns = [] if title is None else [column(title, result.truth)]
    for statistics, mark in zip(reader.statistics, ("", "*"), strict=False):
        columns.append(column(f"{name}{mark}", result.pasted(statistics)))
    return columns


def draw_reconstructions(path: Path, shown: Reconstructions, title: str) -> None:
    """Draw reconstructions, one image a row."""
    gap = max(1, round(_GAP * shown.size))
    rows = [
        torch.cat([_framed(column.draw(row, shown.size), gap) for column in shown.columns], dim=2)
        for row in range(shown.num_rows)
    ]
    mosaic = torch.cat(rows, dim=1)  # one picture: axes for each would take seconds to lay out
    width, height = mosaic.shape[2] / _DPI, mosaic.shape[1] / _DPI
    lines = [title, *(part for line in shown.note.splitlines() for part in wrap(line, int(_LETTERS * width)))]
    head = _LINE * (len(lines) + 2)
    figure = Figure(figsize=(width, height + head))
    axes = figure.add_axes((0, 0, 1, height / (height + head)))
    axes.imshow(mosaic.permute(1, 2, 0).mul(255).byte().numpy(), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    pitch = shown.size + 2 * gap
    for i, column in enumerate(shown.columns):
        axes.text((i + 0.5) * pitch, -gap, column.title, fontsize=8, horizontalalignment="center")
    figure.suptitle("\n".join(lines), fontsize=9, y=1 - _LINE / 2 / (height + head), verticalalignment="top")
    _write(figure, path)


def _framed(picture: Tensor, gap: int) -> Tensor:
    return pad(picture.expand(3, -1, -1), (gap, gap, gap, gap), value=1.0)


def draw_curves(path: Path, records: list[dict[str, Any]], names: list[str]) -> None:
    """Draw the loss of every stage, as long as it learns, and the learning rate over steps."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    steps = [record["step"] for record in records]
    curves = zip(*(record["loss_per_block"] for record in records), strict=True)
    for name, curve in zip(names, curves, strict=True):
        losses = [math.nan if loss is None else loss for loss in curve]
        top.plot(steps, losses, label=name, linewidth=1)
    top.set(ylabel="loss", yscale="log")
    top.legend()
    bottom.plot(steps, [record["lr"] for record in records], color="black", linewidth=1)
    bottom.set(ylabel="learning rate", xlabel="step")
    _grid(top, bottom)
    _write(figure, path)


def draw_memory(path: Path, records: list[dict[str, Any]]) -> None:
    """Draw the bytes held over steps, their peak, and the live activation peak where it was counted."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    steps = [record["step"] for record in records]
    for name, label in (("held_bytes", "held"), ("peak_bytes", "peak so far")):
        axis.plot(steps, [record[name] / 2**20 for record in records], label=label, linewidth=1)
    counted = records[-1]["live_activation_bytes"]
    if counted is not None:
        axis.axhline(counted / 2**20, color="grey", linestyle="--", linewidth=1, label="live activations, peak")
    axis.set(xlabel="step", ylabel="MiB", ylim=(0, None))
    axis.legend()
    _grid(axis)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    scratch = path.with_name(f".{path.name}")
    try:
        figure.savefig(scratch, dpi=_DPI, format="png")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _grid(*axes: Axes) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
