"""`python -m examples.segmentation --backbone RUN_OR_EXPORT --data FOLDER --out FOLDER`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bimkern.torchvision_compat  # where torchvision was built for CUDA
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from bimkern.figures import new_figure
from bimkern.models.pyramid import depths_pyramid
from bimkern.models.swin import SwinConfig
from examples.segmentation.folder import IGNORED, Pairs, read_folder
from examples.segmentation.upernet import UperNet, resized
from examples.transfer.command import Options, run
from examples.transfer.encoder import pyramid_of, read_encoder
from examples.transfer.errors import TransferError
from examples.transfer.shapes import draw_masks
from examples.transfer.training import Recipe, train

if TYPE_CHECKING:
    from matplotlib.colors import ListedColormap

# Wang et al. 2023 (LocalMIM), ADE20K with UperNet; without its relative positions and LayerScale for ViT.
VIT = Recipe(
    image_size=512,
    batch_size=16,
    lr=4e-4,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path=0.1,
    steps=160_000,
    warmup=1500,
)
SWIN = Recipe(image_size=512, batch_size=16, lr=6e-5, weight_decay=0.01, drop_path=0.3, steps=160_000, warmup=1500)
WIDTH = 512
STRIDE = 341 / 512  # of the windows that test images are cut into, over their side
AUXILIARY = 0.4  # weight of that loss
GOLDEN = (math.sqrt(5) - 1) / 2  # of a circle: multiples of it lie far apart
SCALES = (0.5, 2.0)  # of training images, as in mmsegmentation
# Ours, for the drawn data set.
SHAPES = Recipe(image_size=64, batch_size=8, lr=1e-3, weight_decay=0.05, drop_path=0.0, steps=400, warmup=40)
SHAPES_WIDTH, SHAPES_SCALES = 32, (0.8, 1.25)

HELP = """Train a UperNet on a trained encoder, and print its mean IoU.

FOLDER has images/train, images/val, masks/train and masks/val, with masks of the same names: PNG files of class
numbers, 255 where a pixel counts nowhere. ADE20K's folders work as they are:

  python -m examples.segmentation --backbone runs/mine --data ADEChallengeData2016 --out runs/mine-segmentation \\
    --num-classes 150 --ignore-zero

The numbers are those of LocalMIM for ADE20K: 160,000 steps at 512 pixels."""


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(Options):
    """Options of this example."""

    num_classes: int | None = None
    """Number of classes. Default: the lines of classes.txt in FOLDER."""
    ignore_zero: bool = False
    """Masks have 0 where a pixel counts nowhere, besides 255, and classes begin with 1."""
    taps: tuple[int, ...] = ()
    """Four layers of a ViT to read, counted from 0. Default: 3 5 7 11 of 12, as in MAE; LocalMIM takes 1 3 9 11."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("num_classes", 1)


def segmentation(options: SegmentationOptions) -> None:
    """Train, test, and write the results."""
    folder, shapes = options.folder(draw_masks), options.data == "shapes"
    backbone = read_encoder(options.backbone, scratch=options.scratch)
    published = SWIN if isinstance(backbone.config, SwinConfig) else VIT
    recipe = options.changed(SHAPES if shapes else published)
    num_classes = options.num_classes or _count_classes(folder)
    pyramid = pyramid_of(backbone, partial(depths_pyramid, taps=options.taps or None))
    model = UperNet(pyramid, num_classes, SHAPES_WIDTH if shapes else WIDTH).to(options.device)
    normalize = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(backbone.images.mean, backbone.images.std)]
    )
    scales = SHAPES_SCALES if shapes else SCALES
    pairs = {
        part: read_folder(folder, part, transform, zero_is_ignored=options.ignore_zero)
        for part, transform in (("train", crops(recipe.image_size, scales, normalize)), ("val", normalize))
    }

    for part in pairs.values():
        part.check(num_classes)
    _check_batch(min(recipe.batch_size, len(pairs["train"])), options.micro_batch)

    def loss_of(samples: list[tuple[Tensor, Tensor]]) -> Tensor:
        images, labels = (torch.stack(tensors).to(options.device) for tensors in zip(*samples, strict=True))
        main, auxiliary = (mean_error(logits, labels) for logits in model(images))
        return main + AUXILIARY * auxiliary

    losses = train(
        model,
        pyramid.encoder,
        pairs["train"],
        loss_of,
        recipe,
        micro_batch=options.micro_batch,
        workers=options.workers,
        seed=options.seed,
    )
    ious = test(model, pairs["val"], num_classes, recipe.image_size)
    mean = ious[~ious.isnan()].mean().item()
    by_class = [None if math.isnan(iou) else iou for iou in ious.tolist()]
    options.save(model, {"mean_iou": mean, "iou": by_class, "loss": losses})
    draw(model, pairs["val"], num_classes, recipe.image_size, options.out / "predictions.png")
    print(f"mean IoU {mean:.2%}")


def _check_batch(size: int, micro_batch: int | None) -> None:
    """Make sure that UperNet's batch norms, one of which sees a pixel of each image, see two images at a time."""
    at_a_time = min(micro_batch or size, size)
    if (size % at_a_time or at_a_time) < 2:
        raise TransferError(
            f"the batch norms need at least 2 images at a time, got 1 of a batch of {size}; choose another "
            "--batch-size or --micro-batch, or add images"
        )


def _count_classes(folder: Path) -> int:
    names = folder / "classes.txt"
    if not names.is_file():
        raise TransferError(f"--num-classes is missing, and so is {names}")
    return sum(1 for line in names.read_text().splitlines() if line.strip())


def crops(side: int, scales: tuple[float, float], normalize: v2.Transform) -> v2.Transform:
    """Return random crops of images whose short side is scaled between two multiples of a crop's."""
    smallest, largest = (round(scale * side) for scale in scales)
    return v2.Compose(
        [
            v2.RandomShortestSize(list(range(smallest, largest + 1)), max_size=8 * side),
            v2.RandomCrop(side, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}),
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(),
            normalize,
        ]
    )


def mean_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the pixels that count; 0 where none does, of which the mean would be NaN."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


@torch.no_grad()
def predict(model: UperNet, image: Tensor, side: int) -> Tensor:
    """Return the classes of an image [3, H, W], from windows over the image at a short side of `side`: [H, W].

    Where windows overlap, their probabilities are averaged.
    """
    height, width = image.shape[1:]
    scale = side / min(height, width)
    # As in training: with a filter, so that no pixel of a large image is passed over.
    small = v2.functional.resize(image[None], [max(side, round(extent * scale)) for extent in (height, width)])
    total, windows = torch.zeros(()), small.new_zeros(1, 1, *small.shape[2:])
    for rows in _windows(small.shape[2], side):
        for columns in _windows(small.shape[3], side):
            found = model(small[:, :, rows, columns])[0].softmax(1)
            if not total.dim():
                total = found.new_zeros(1, found.shape[1], *small.shape[2:])
            total[:, :, rows, columns] += found
            windows[:, :, rows, columns] += 1
    return resized(total / windows, (height, width)).argmax(1)[0]


def _windows(extent: int, side: int) -> Iterator[slice]:
    """Yield windows that cover an extent, the last at its end."""
    stride = round(side * STRIDE)
    for first in range(0, max(1, extent - side + stride), stride):
        first = min(first, extent - side)
        yield slice(first, first + side)


def test(model: UperNet, pairs: Pairs, num_classes: int, side: int) -> Tensor:
    """Return the intersection over union of every class; NaN where neither truth nor prediction has it."""
    model.eval()
    device = next(model.parameters()).device
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for image, labels in (pairs[index] for index in range(len(pairs))):
        found = predict(model, image.to(device), side).cpu()
        counted = labels != IGNORED
        codes = labels[counted] * num_classes + found[counted]
        confusion += codes.bincount(minlength=num_classes**2).view(num_classes, num_classes)
    right = confusion.diag().double()
    return right / (confusion.sum(0) + confusion.sum(1) - right)


def class_colors(num_classes: int) -> "ListedColormap":
    """Return colors of classes, all of them different: hues that lie apart, in several saturations and values."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, hsv_to_rgb

    usual = colormaps["tab20"]
    if num_classes <= usual.N:
        return usual
    numbers = torch.arange(num_classes)
    hues, others = numbers * GOLDEN % 1, torch.tensor([1.0, 0.75, 0.5])
    colors = torch.stack([hues, others[numbers % 3], others[numbers // 3 % 3]], dim=1)
    return ListedColormap(hsv_to_rgb(colors.double().numpy()))


def draw(model: UperNet, pairs: Pairs, num_classes: int, side: int, path: Path, count: int = 4) -> None:
    """Draw some test images, what they show, and what is predicted."""
    device = next(model.parameters()).device
    count = min(count, len(pairs))
    figure = new_figure(6, 2 * count)
    colors = class_colors(num_classes)
    look: dict[str, Any] = {"cmap": colors, "vmin": 0, "vmax": colors.N - 1, "interpolation": "nearest"}
    for index, row in enumerate(figure.subplots(count, 3, squeeze=False)):
        image, labels = pairs.read(index)
        found = predict(model, pairs[index][0].to(device), side).cpu()
        row[0].imshow(image.permute(1, 2, 0))
        row[1].imshow(labels.float().masked_fill(labels == IGNORED, torch.nan), **look)
        row[2].imshow(found, **look)
        for axes, title in zip(row, ("image", "truth", "prediction"), strict=True):
            axes.set_axis_off()
            if not index:
                axes.set_title(title)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    run("examples.segmentation", SegmentationOptions, segmentation, HELP)
