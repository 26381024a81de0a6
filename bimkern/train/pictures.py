"""The pictures of a run: reconstructions of every block, curves, memory over time.

Whatever draws takes numbers on the host alone, so that it may run in the background.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from bimkern.mim.model import MIM
from bimkern.mim.reconstruct import Statistics, paste_visible, reconstruct

_HONEST = "raw pixel predictions: no statistics of the truth are used"
_NORMALISED = (
    "de-normalised with brightness and contrast of the average visible patch;\n"
    "* with those of the hidden truth, which leaks"
)

Columns = list[tuple[str, Tensor]]  # title, [B, C, H, W] in [0, 1]


@dataclass(frozen=True)
class Reconstructions:
    """Original, masked, and the reconstruction of every block; the note says whose statistics de-normalise them."""

    columns: Columns
    note: str


def predict(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> Reconstructions:
    """Reconstruct images [B, C, H, W] uint8; where a target needs statistics, with both choices of them."""
    columns: Columns = [("original", images / 255), *_predictions(model, images, draw_ids, seed, "visible")]
    if model.method.target(0).normalize:
        columns += [(f"{name}*", pixels) for name, pixels in _predictions(model, images, draw_ids, seed, "truth")[1::2]]
    note = _NORMALISED if model.method.target(0).normalize else _HONEST
    return Reconstructions([(name, pixels.cpu()) for name, pixels in columns], note)


def draw_reconstructions(path: Path, shown: Reconstructions, title: str) -> None:
    """Draw reconstructions, one image a row."""
    names, columns = zip(*shown.columns, strict=True)
    figure = Figure(figsize=(1.3 * len(columns), 1.3 * len(columns[0]) + 0.7), layout="constrained")
    axes = figure.subplots()  # one for all: laying out one for each image takes seconds
    mosaic = _mosaic(torch.stack(columns, dim=1))
    axes.imshow(mosaic.numpy(), interpolation="nearest", aspect="equal")
    pitch = mosaic.shape[1] / len(columns)
    axes.set_xticks([(i + 0.5) * pitch for i in range(len(columns))], names, fontsize=8)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(f"{title}\n{shown.note}", fontsize=9)
    _write(figure, path)


def _mosaic(images: Tensor) -> Tensor:
    """Lay images [rows, columns, C, H, W] out as one, with white between them."""
    rows, columns, channels, height, width = images.shape
    gap = max(1, width // 20)
    framed = functional.pad(images, (gap, gap, gap, gap), value=1.0).permute(0, 3, 1, 4, 2)
    return framed.reshape(rows * (height + 2 * gap), columns * (width + 2 * gap), channels)


def _predictions(model: MIM, images: Tensor, draw_ids: Tensor, seed: int, statistics: Statistics) -> Columns:
    """Return two columns a block: what it sees, and what it makes of it."""
    columns: Columns = []
    for k, result in enumerate(reconstruct(model, images, draw_ids, seed, statistics)):
        grey = replace(result, vectors=torch.zeros_like(result.vectors))
        hidden, patches = int(result.hidden[0].sum()), result.hidden.shape[1]
        columns.append((f"{hidden} of {patches} hidden", paste_visible(model, images, grey)))
        columns.append((f"block {k + 1}", paste_visible(model, images, result)))
    return columns


def draw_curves(path: Path, records: list[dict[str, Any]]) -> None:
    """Draw the loss of every block and the learning rate over steps."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    steps = [record["step"] for record in records]
    for k, curve in enumerate(zip(*(record["loss_per_block"] for record in records), strict=True)):
        losses = [math.nan if loss is None else loss for loss in curve]
        top.plot(steps, losses, label=f"block {k + 1}", linewidth=1)
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
        figure.savefig(scratch, dpi=120, format="png")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _grid(*axes: Axes) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
