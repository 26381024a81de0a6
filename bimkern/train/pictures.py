"""The pictures of a run: reconstructions of every block, curves, memory over time."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bimkern.mim.reconstruct import Statistics, paste_visible, reconstruct
from bimkern.mim.model import MIM

_NOTES: dict[Statistics, str] = {
    "visible": "brightness and contrast of the average visible patch",
    "truth": "brightness and contrast of the hidden truth, which leaks",
}


def draw_reconstructions(path: Path, model: MIM, images: Tensor, draw_ids: Tensor, seed: int, title: str) -> None:
    """Draw original, masked, and the reconstruction of every block, one image [B, C, H, W] uint8 a row.

    The title says whose statistics de-normalise the prediction; where a target needs some, both choices are drawn.
    """
    choices: tuple[Statistics, ...] = ("visible", "truth") if model.method.target.normalize else ("visible",)
    columns = [("original", images.float() / 255)]
    for statistics in choices:
        for k, result in enumerate(reconstruct(model, images, draw_ids, seed, statistics)):
            hidden = int(result.hidden[0].sum())
            if statistics == "visible":
                grey = result.vectors.new_zeros(()).expand_as(result.vectors)
                shown = paste_visible(model, images, type(result)(result.hidden, grey))
                if k == 0 or len(model.method.masker.ratios) > 1:
                    columns.append((f"{hidden}/{result.hidden.shape[1]} hidden", shown))
            columns.append((f"block {k + 1}" if statistics == "visible" else f"block {k + 1}*", paste_visible(model, images, result)))
    size = 1.3
    figure = Figure(figsize=(size * len(columns), size * len(images) + 0.7), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(images), len(columns), squeeze=False)):
        for axis, (name, pixels) in zip(axes, columns, strict=True):
            axis.imshow(pixels[row].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=8)
    if model.method.target.normalize:
        title += f"\nde-normalised with {_NOTES['visible']}; *: {_NOTES['truth']}"
    else:
        title += "\nraw pixel predictions: no statistics of the truth are used"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_curves(path: Path, records: list[dict[str, Any]]) -> None:
    """Draw the loss of every block and the learning rate over steps."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    steps = [record["step"] for record in records]
    losses = torch.tensor([record["loss_per_block"] for record in records])  # [steps, S]
    for k, curve in enumerate(losses.T):
        top.plot(steps, curve, label=f"block {k + 1}", linewidth=1)
    top.set(ylabel="loss", yscale="log")
    top.legend()
    bottom.plot(steps, [record["lr"] for record in records], color="black", linewidth=1)
    bottom.set(ylabel="learning rate", xlabel="step")
    _grid(top, bottom)
    figure.savefig(path, dpi=120)


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
    figure.savefig(path, dpi=120)


def _grid(*axes: Axes) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
