"""pixel_targets against patches in plain torch."""

import math

import torch
from torch import Tensor

from bench import shapes
from bench.entries.masked_pixel_loss import normalized, patchify
from bench.entry import Case, Measure, entry
from bimkern.ops.pixel_targets import pixel_targets, pixel_targets_reference


def usual(images: Tensor, mean: Tensor, std: Tensor, patch: int) -> Tensor:
    """The usual form: normalized images, cut into patches, each of which is normalized again."""
    pixels = images / 255 if images.dtype == torch.uint8 else images
    return normalized(patchify((pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), patch))


@entry("pixel_targets", shapes=shapes.PIXELS, dtypes=("uint8", "float32"), passes=("fwd",))
def measure(case: Case) -> Measure:
    """Pixels of every patch, normalized one by one."""
    B, N, p = (case.dims[letter] for letter in "BNp")
    side = math.isqrt(N) * p
    images = torch.randint(0, 256, (B, 3, side, side), dtype=torch.uint8, device=case.device)
    if case.dtype == "float32":
        images = images / 255
    mean, std = (torch.rand(3, device=case.device) + 0.2 for _ in range(2))
    compiled = case.compiled(pixel_targets_reference)
    return Measure(
        ours=lambda: pixel_targets(images, p, mean=mean, std=std),
        rivals={
            "usual": lambda: usual(images, mean, std, p),
            "compile": lambda: compiled(images, mean, std, p, True, torch.float32),
        },
        reference=lambda: pixel_targets_reference(images, mean, std, p, True, torch.float32),
        bytes=images.nbytes + 4 * images.numel(),
    )
