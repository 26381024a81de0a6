"""A small data set to try detection and segmentation on: circles, squares and triangles, with boxes and masks.

What it holds depends on the seed alone. `python -m examples.transfer.shapes FOLDER` draws other images of its kind,
without boxes and masks, to pre-train on.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bimkern.cli import command
from examples.transfer.errors import TransferError

SHAPES = ("circle", "square", "triangle")
SIDE = 64  # pixels of an image
NUM_TRAIN, NUM_TEST, NUM_UNLABELED = 64, 128, 4096
_SEEDS = {"train": 0, "val": 1, "unlabeled": 2}
_CORNERS = {"circle": 40, "square": 4, "triangle": 3}

Drawn = tuple[Image.Image, list[tuple[int, NDArray[np.bool_]]]]  # and the class and visible pixels of each shape


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to draw, and how many."""

    folder: tyro.conf.Positional[Path]
    """Folder for the images."""
    count: int = NUM_UNLABELED
    """Number of images."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise TransferError(f"--count must be at least 1, got {self.count}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw images without boxes and masks into a folder."""
    program = "python -m examples.transfer.shapes"
    with command.ended_in_a_line(program):
        given = list(sys.argv[1:] if arguments is None else arguments)
        options = command.parse(Options, given, usage=f"{program} FOLDER", description="Draw shapes to pre-train on.")
        draw_unlabeled(options.folder, options.count)


def draw_unlabeled(folder: Path, count: int = NUM_UNLABELED) -> None:
    """Write images that are in none of the parts of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(_SEEDS["unlabeled"])
    for number in range(count):
        image, _ = _draw(generator)
        image.save(folder / f"{number:05d}.png")


def draw_coco(folder: Path) -> None:
    """Write the data set as COCO does: `train/`, `val/` and `annotations/instances_*.json`."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for part, images in _parts():
        (folder / part).mkdir(exist_ok=True)
        records, annotations = [], []
        for number, (image, instances) in enumerate(images):
            name = f"{number:04d}.png"
            image.save(folder / part / name)
            records.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            for shape, mask in instances:
                rows, columns = np.nonzero(mask)
                left, top = int(columns.min()), int(rows.min())
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": shape + 1,
                        "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": {"size": [SIDE, SIDE], "counts": _runs(mask)},
                    }
                )
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(SHAPES)]
        content = {"images": records, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def draw_masks(folder: Path) -> None:
    """Write the data set as images and masks: `images/PART/` and `masks/PART/`, whose values are 0 for background."""
    for part, images in _parts():
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for number, (image, instances) in enumerate(images):
            labels = np.zeros((SIDE, SIDE), np.uint8)
            for shape, mask in instances:
                labels[mask] = shape + 1
            image.save(folder / "images" / part / f"{number:04d}.png")
            Image.fromarray(labels).save(folder / "masks" / part / f"{number:04d}.png")
    (folder / "classes.txt").write_text("\n".join(("background", *SHAPES)))


def _parts() -> Iterator[tuple[str, Iterator[Drawn]]]:
    for part, count in (("train", NUM_TRAIN), ("val", NUM_TEST)):
        generator = np.random.default_rng(_SEEDS[part])
        yield part, (_draw(generator) for _ in range(count))


def _draw(generator: np.random.Generator) -> Drawn:
    """Draw one to three shapes over each other, with noise."""
    image = Image.fromarray(_texture(generator))
    instances: list[tuple[int, NDArray[np.bool_]]] = []
    for _ in range(generator.integers(1, 4)):
        shape = int(generator.integers(len(SHAPES)))
        mask = Image.new("1", (SIDE, SIDE))
        ImageDraw.Draw(mask).polygon(_outline(generator, _CORNERS[SHAPES[shape]]), fill=1)
        image.paste(Image.fromarray(_texture(generator)), mask=mask)
        covered = np.asarray(mask)
        instances = [(other, visible & ~covered) for other, visible in instances] + [(shape, covered)]
    noisy = np.asarray(image) + generator.normal(0, 2, (SIDE, SIDE, 3))
    visible = [(shape, mask) for shape, mask in instances if mask.sum() >= 48]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), visible


def _texture(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return a color that changes along one direction, [SIDE, SIDE, 3]."""
    first, second = generator.uniform(0, 255, (2, 3))
    angle = generator.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    along = (0.5 + rows * math.sin(angle) / 1.5 + columns * math.cos(angle) / 1.5)[..., None]
    return (first * along + second * (1 - along)).clip(0, 255).astype(np.uint8)


def _outline(generator: np.random.Generator, num_corners: int) -> list[tuple[float, float]]:
    radius, turn = generator.uniform(9, 18), generator.uniform(-0.25, 0.25) - math.pi / num_corners
    x, y = generator.uniform(radius, SIDE - radius, 2)
    angles = turn + np.arange(num_corners) * 2 * math.pi / num_corners
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed mask: lengths of runs of 0 and 1 in turns, column by column, beginning with 0."""
    flat = np.concatenate([[False], mask.flatten(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


if __name__ == "__main__":
    main()
