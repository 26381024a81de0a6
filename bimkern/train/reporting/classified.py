"""What a classifier says of held-out images: accuracies, the confusion of classes, and its most confident errors.

Shapes: B images of a batch, N of all, C channels, H W pixels, K classes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bimkern.figures import new_figure, plain, shortened
from bimkern.files import atomic
from bimkern.train.reporting.plots import shown_channels

_TOP = 5
_SHOWN = 24  # errors in the picture
_COLUMNS = 6
_NAMED = 30  # classes at most whose names fit beside a matrix
_LONGEST, _NARROW = 24, 18  # characters of a name there, and above an image, that leave both room
_GROUPS = 1000  # at most, of classes, that a matrix shows: about as many as it has pixels


@dataclass(frozen=True)
class Errors:
    """The images that were most confidently taken for another class, the worst first."""

    images: Tensor  # [E, C, H, W] uint8, likewise on the host
    labels: Tensor  # [E]
    predicted: Tensor  # [E]
    confidence: Tensor  # [E], the probability of the predicted class


@dataclass(frozen=True)
class Classified:
    """How a classifier does on held-out images."""

    loss: float
    top1: float  # in [0, 1], likewise top5
    top5: float | None  # of five guesses; None where there are no more classes
    confusion: Tensor  # [K, K] int64: images of class i that were taken for class j
    errors: Errors

    def record(self) -> dict[str, float]:
        """Return what metrics.jsonl keeps of it."""
        found = {"held_out_loss": self.loss, "held_out_top1": self.top1}
        return found if self.top5 is None else found | {"held_out_top5": self.top5}


@torch.no_grad()
def classify(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Classified:
    """Evaluate a classifier.

    Args:
        model: from images to logits [B, K]; it is left in the mode that it was in.
        batches: images [B, C, H, W] uint8 on the model's device, and labels [B] int64.
        num_classes: K.
    """
    trains, guesses = model.training, min(_TOP, num_classes)
    model.eval()
    loss = hits = top = count = 0.0
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    errors: Errors | None = None
    for images, there in batches:
        logits = model(images)
        labels = there.to(logits.device)
        best = logits.topk(guesses, dim=1).indices  # [B, guesses]
        predicted = best[:, 0]
        loss += float(cross_entropy(logits, labels, reduction="sum"))
        hits += int((predicted == labels).sum())
        top += int((best == labels[:, None]).any(dim=1).sum())
        count += len(labels)
        pairs = (labels * num_classes + predicted).cpu()
        confusion.scatter_add_(0, pairs, torch.ones_like(pairs))  # a matrix of the batch alone would be as large
        errors = _worst(errors, images, labels, predicted, logits.softmax(dim=1))
    model.train(trains)
    assert errors is not None
    top5 = top / count if num_classes > _TOP else None
    return Classified(loss / count, hits / count, top5, confusion.view(num_classes, num_classes), errors)


def _worst(before: Errors | None, images: Tensor, labels: Tensor, predicted: Tensor, probabilities: Tensor) -> Errors:
    """Return the most confident errors among those before and those of a batch."""
    confidence = probabilities.gather(1, predicted[:, None])[:, 0]
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)[:_SHOWN]]
    now = Errors(*(values[wrong].cpu() for values in (images, labels, predicted, confidence)))
    if before is None:
        return now
    both = [torch.cat([getattr(errors, name) for errors in (before, now)]) for name in Errors.__annotations__]
    order = both[-1].argsort(descending=True, stable=True)[:_SHOWN]
    return Errors(*(values[order] for values in both))


def draw_confusion(path: Path, found: Classified, classes: Sequence[str], title: str) -> None:
    """Draw the shares of every class that were taken for each class; of very many classes, in groups of some."""
    size = -(-len(classes) // _GROUPS)
    counts = _in_groups(found.confusion, size)
    of_all = counts.sum(dim=1, keepdim=True)
    shares = 100 * counts / of_all  # NaN without an image
    side = min(10.0, 4 + 0.25 * len(classes))
    figure = new_figure(side + 1, side)
    axis = figure.subplots()
    image = axis.imshow(shares.numpy(), vmin=0, vmax=100, cmap="Blues")
    axis.set_facecolor("lightgray")
    figure.colorbar(image, ax=axis, shrink=0.8, label="% of the true class")
    grouped = f", in groups of {size} classes" if size > 1 else ""
    gray = "" if of_all.all() else "; gray: no image"
    axis.set(xlabel=f"predicted{grouped}", ylabel=f"true{grouped}{gray}")
    axis.set_title(plain(f"{title}: top-1 {found.top1:.1%}"))
    if len(classes) <= _NAMED:
        names = [plain(shortened(name, _LONGEST)) for name in classes]
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        for row, column in (shares >= 0.5).nonzero().tolist():
            share = float(shares[row, column])
            color = "white" if share > 50 else "black"
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
    _write(figure, path)


def _in_groups(confusion: Tensor, size: int) -> Tensor:
    """Add up the counts of groups of `size` classes that follow each other, as float64."""
    if size == 1:
        return confusion.double()
    group = torch.arange(len(confusion)) // size
    number = int(group[-1]) + 1
    rows = confusion.new_zeros(number, len(confusion)).index_add_(0, group, confusion)
    return rows.new_zeros(number, number).index_add_(1, group, rows).double()


def draw_errors(path: Path, errors: Errors, classes: Sequence[str], title: str) -> None:
    """Draw the most confident errors, each above its class and what it was taken for."""
    rows = max(1, math.ceil(len(errors.labels) / _COLUMNS))
    figure = new_figure(1.6 * _COLUMNS, 2.1 * rows + 0.4)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    shown = "; ".join([title if len(errors.labels) else f"{title}: none", *shown_channels(errors.images.shape[1])])
    figure.suptitle(plain(shown), fontsize=9)
    for axis in axes:
        axis.axis("off")
    for axis, image, label, predicted, confidence in zip(
        axes, errors.images, errors.labels.tolist(), errors.predicted.tolist(), errors.confidence.tolist(), strict=False
    ):
        pixels = image[: 3 if len(image) > 2 else 1].permute(1, 2, 0)
        axis.imshow(pixels.numpy() if pixels.shape[2] == 3 else pixels[..., 0].numpy(), cmap="gray", vmin=0, vmax=255)
        true, guess = (plain(shortened(classes[number], _NARROW)) for number in (label, predicted))
        axis.set_title(f"{true}\ntaken for {guess}\n({confidence:.0%})", fontsize=7)
    _write(figure, path)


def draw_training(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Draw the loss that is trained with, the accuracy on held-out images, and the learning rate over epochs."""
    figure = new_figure(8, 6.5)
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1))
    epochs = [record["epoch"] for record in records]
    evaluated = [record for record in records if "held_out_top1" in record]
    top.plot(epochs, [record["loss"] for record in records], linewidth=1, label="training, as mixed and smoothed")
    if evaluated:
        at = [record["epoch"] for record in evaluated]
        top.plot(at, [record["held_out_loss"] for record in evaluated], ".-", linewidth=1, label="held out")
        for name, label in (("held_out_top1", "top-1"), ("held_out_top5", "top-5")):
            if name in evaluated[0]:
                middle.plot(at, [100 * record[name] for record in evaluated], ".-", linewidth=1, label=label)
        middle.legend()
    top.set(ylabel="loss")
    top.legend()
    middle.set(ylabel="held-out accuracy, %")
    bottom.plot(epochs, [record["lr"] for record in records], color="black", linewidth=1)
    bottom.set(ylabel="learning rate", xlabel="epoch")
    for axis in (top, middle, bottom):
        axis.grid(alpha=0.3)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    with atomic.replaced(path) as scratch:
        figure.savefig(scratch, dpi=120, format="png")
