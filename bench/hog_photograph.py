"""What hog makes of photographs: a picture at four cell sizes, and how much float pixels lose to rounding.

    python -m bench.hog_photograph

First the share of pixels whose gradient is 0 in one direction: their angle lies on a boundary between bins.
The table is the share of entries that differ by more than 1e-3 from those of whole numbers in float64, over four
photographs of scikit-image: ours, and the layer that MIM programs usually have (entries/hog.py) on pixels / 255.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor
from torch.nn import functional as F

from bench.entries.hog import CELLS, sobel, twelve_passes
from bimkern.mim.reconstruction.hog_strokes import draw_hog
from bimkern.ops import hog
from bimkern.ops.hog import hog_reference

BINS = 9
PICTURE = Path(__file__).parent / "results" / "hog_photograph.png"
DRAWN = 1792  # pixels


def photograph(name: str) -> Tensor:
    """uint8, [1, 3, 224, 288]."""
    return torch.from_numpy(getattr(data, name)()[40:264, 40:328].copy()).permute(2, 0, 1)[None]


def draw(path: Path) -> None:
    image = torch.from_numpy(data.astronaut()[0:224, 112:336].copy()).permute(2, 0, 1)[None]
    figure = Figure(figsize=(16, 3.4), layout="constrained")
    axes = figure.subplots(1, 1 + len(CELLS))
    axes[0].imshow(image[0].permute(1, 2, 0), interpolation="lanczos")
    axes[0].set_title("224 x 224")
    for axis, cell, vectors in zip(axes[1:], CELLS, hog(image, CELLS, BINS), strict=True):
        grid = (224 // cell, 224 // cell)
        picture = draw_hog(vectors[0], grid, BINS, side=DRAWN // grid[0])
        axis.imshow(picture.permute(1, 2, 0), interpolation="antialiased")
        axis.set_title(f"cells of {cell} x {cell}")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def lost(results: Sequence[Tensor], exact: Sequence[Tensor]) -> str:
    return " ".join(
        f"{100 * ((result - truth).abs() > 1e-3).double().mean():6.2f}"
        for result, truth in zip(results, exact, strict=True)
    )


def main() -> None:
    draw(PICTURE)
    images = torch.cat([photograph(name) for name in ("astronaut", "coffee", "cat", "rocket")])
    planes = F.pad(images.double().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    x, y = 100 * (F.conv2d(planes, sobel().double()) == 0).double().mean((0, 2, 3))
    print(f"wrote {PICTURE}\n\n% of pixels without a horizontal gradient {x:.1f}, without a vertical one {y:.1f}")
    print(f"\n% of entries off by more than 1e-3, cells of {', '.join(map(str, CELLS))}")
    for bins in (9, 18):
        exact = hog_reference(images.double(), CELLS, bins, dtype=torch.float64)
        print(f"{bins:2} bins, uint8 pixels  {lost(hog(images, CELLS, bins), exact)}")
        print(f"{bins:2} bins, pixels / 255  {lost(hog(images / 255, CELLS, bins), exact)}")
        print(f"{bins:2} bins, usual layer   {lost(twelve_passes(images / 255, sobel(), bins), exact)}")


if __name__ == "__main__":
    main()
