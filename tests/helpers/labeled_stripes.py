"""Labeled images that any encoder tells apart: stripes across or down, with some noise."""

import numpy as np
from PIL import Image

CLASSES = ("across", "down")


def write_stripes(folder, train=12, val=6, side=40):
    """Write `train` and `val`, each with so many images of every class; return the folder."""
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for kind in CLASSES:
            (folder / part / kind).mkdir(parents=True)
            for number in range(count):
                lines = np.repeat(np.arange(side) // 5 % 2 * 160, side).reshape(side, side)
                lines = lines if kind == "across" else lines.T
                noisy = lines[..., None] + generator.integers(0, 80, (side, side, 3))
                Image.fromarray(noisy.astype(np.uint8)).save(folder / part / kind / f"{number}.png")
    return folder
