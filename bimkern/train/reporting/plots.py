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
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bimkern.arena import Plan, draw_sawtooth
from bimkern.figures import new_figure
from bimkern.files import atomic
from bimkern.image_size import ImageSize
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.reconstruct import StageReconstruction, gray_out, reconstruct, stage_name
from bimkern.mim.reconstruction.renderers import Renderer

_GAP = 0.05  # around a picture, of its side
_LINE = 0.12  # a line of text, likewise
_COMPRESSION = 3  # of zlib's 9: half the time of its default


@dataclass(frozen=True)
class Column:
    """Pictures that are still to be drawn, one an image."""

    title: str
    draw: Callable[[int, ImageSize], Tensor]  # from the row and the size: [C, H, W] in [0, 1], on the host


@dataclass(frozen=True)
class Reconstructions:
    """Original, masked, and what every stage predicts; the legend says whose statistics were used."""

    columns: list[Column]
    num_rows: int
    size: ImageSize  # of a picture
    legend: str


def predict(model: MIM, images: Tensor, draw_ids: Tensor, seed: int) -> Reconstructions:
    """Predict what is masked of images [B, C, H, W] uint8; where a target needs statistics, with both choices."""
    results = reconstruct(model, images, draw_ids, seed)
    columns = [_photographs("original", images / 255)]
    before: StageReconstruction | None = None
    for stage, result in enumerate(results):
        if before is None or not torch.equal(before.view.masked, result.view.masked):
            columns.append(_photographs(_count(result.view.masked), gray_out(model, images, result.view)))
        if before is None or not torch.equal(before.truth, result.truth):
            columns += _targets(result)
        columns += _predictions(stage_name(model.method, stage), result)
        before = result
    size = max(result.renderer.size(result.truth) for result in results)
    legends = [*dict.fromkeys(result.renderer.legend for result in results), *shown_channels(images.shape[1])]
    legend = "\n".join(legends)
    return Reconstructions(columns, len(images), size, legend)


def shown_channels(channels: int) -> list[str]:
    """Say which channels a picture shows, where they are not gray or RGB."""
    if channels in (1, 3):
        return []
    return [f"of {channels} channels, " + ("the first three in red, green and blue" if channels > 3 else "the first")]


def _photographs(title: str, pixels: Tensor) -> Column:
    host = pixels.cpu()
    return Column(title, lambda row, size: adaptive_avg_pool2d(host[row], (size.height, size.width)))


def _count(masked: Tensor) -> str:
    least, most = (int(count) for count in masked.sum(1).aminmax())
    return f"{least if least == most else f'{least}-{most}'} of {masked.shape[1]} masked"


def _targets(result: StageReconstruction) -> list[Column]:
    title = result.renderer.target_name(result.truth)
    return [] if title is None else [_drawn(title, result.renderer, result.truth)]


def _predictions(name: str, result: StageReconstruction) -> list[Column]:
    """Return what a stage predicts, with each choice of statistics."""
    return [
        _drawn(f"{name}{mark}", result.renderer, result.pasted(statistics))
        for statistics, mark in zip(result.renderer.statistics, ("", "*"), strict=False)
    ]


def _drawn(title: str, renderer: Renderer, values: Tensor) -> Column:
    host = values.float().cpu()
    return Column(title, lambda row, size: renderer.draw(host[row], size))


def draw_reconstructions(path: Path, shown: Reconstructions, title: str) -> None:
    """Draw reconstructions, one image per row. A matplotlib figure with as many axes would take many times as long.

    Tiles are converted one by one: whole rows of floats took 90 MB, which malloc then kept.
    """
    side = min(math.sqrt(shown.size.pixels), shown.size.width)  # titles must fit in the width of a picture
    gap, line = max(1, round(_GAP * side)), round(_LINE * side)
    height, step = shown.size.height + 2 * gap, shown.size.width + 2 * gap
    width = step * len(shown.columns)
    font = ImageFont.load_default(size=line / 1.5)
    letters = int(width / font.getlength("n"))
    texts = [title, *(part for text in shown.legend.splitlines() for part in wrap(text, letters))]
    head = (len(texts) + 2) * line
    picture = Image.new("RGB", (width, height * shown.num_rows + head), "white")
    for row in range(shown.num_rows):
        for i, column in enumerate(shown.columns):
            picture.paste(_tile(column.draw(row, shown.size)), (i * step + gap, head + row * height + gap))
    pen = ImageDraw.Draw(picture)
    for i, text in enumerate(texts):
        pen.text((picture.width / 2, (i + 0.5) * line), text, fill="black", font=font, anchor="mt")
    for i, column in enumerate(shown.columns):
        middle = (i + 0.5) * picture.width / len(shown.columns)
        pen.text((middle, head - line / 4), column.title, fill="black", font=font, anchor="ms")
    with atomic.replaced(path) as scratch:
        picture.save(scratch, format="png", compress_level=_COMPRESSION)


def _tile(picture: Tensor) -> Image.Image:
    """Convert a picture [C, H, W] in [0, 1]: the first three channels, else the first in gray."""
    pixels = picture[: 3 if len(picture) > 2 else 1].expand(3, -1, -1).permute(1, 2, 0)  # [H, W, 3]
    return Image.fromarray(pixels.mul(255).round().byte().contiguous().numpy())


def draw_curves(path: Path, records: list[dict[str, Any]], names: list[str]) -> None:
    """Draw the loss of every stage, as long as it learns, and the learning rate over steps."""
    figure = new_figure(8, 5)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    steps = [record["step"] for record in records]
    curves = zip(*(record["loss_per_stage"] for record in records), strict=True)
    for name, curve in zip(names, curves, strict=True):
        losses = [math.nan if loss is None else loss for loss in curve]
        top.plot(steps, losses, label=name, linewidth=1)
    top.set(ylabel="loss", yscale="log")
    top.legend()
    bottom.plot(steps, [record["lr"] for record in records], color="black", linewidth=1)
    bottom.set(ylabel="learning rate", xlabel="step")
    _grid(top, bottom)
    _write(figure, path)


def draw_memory(path: Path, records: list[dict[str, Any]], plan: Plan | None = None) -> None:
    """Draw the bytes held over steps, their peak, the live activations where they were counted, and a step's plan."""
    figure = new_figure(8, 3 if plan is None else 6)
    axis, *below = figure.subplots(1 if plan is None else 2, squeeze=False)[:, 0]
    steps = [record["step"] for record in records]
    for name, label in (("held_bytes", "held"), ("peak_bytes", "peak so far")):
        axis.plot(steps, [record[name] / 2**20 for record in records], label=label, linewidth=1)
    counted = records[-1]["live_activation_bytes"]
    if counted is not None:
        axis.axhline(counted / 2**20, color="gray", linestyle="--", linewidth=1, label="live activations, peak")
    axis.set(xlabel="step", ylabel="MiB", ylim=(0, None))
    axis.legend()
    _grid(axis)
    if plan is not None:
        draw_sawtooth(below[0], plan)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    with atomic.replaced(path) as scratch:
        figure.savefig(scratch, dpi=120, format="png")


def _grid(*axes: Any) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
