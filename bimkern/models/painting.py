"""Images as a network takes them: normalized, and painted over where patches are masked.

Shapes: B images, C channels, H W pixels, N patches.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bimkern.models.encoder import View


def normalize(images: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Return images [B, C, H, W] with mean and std [C] taken out, in their dtype; uint8 first goes to [0, 1].

    Without mean and std the images are normalized already.
    """
    if mean is None or std is None:
        return images
    pixels = images.to(mean.dtype)
    if not images.is_floating_point():
        pixels = pixels / 255
    return (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def paint(images: Tensor, view: View, color: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return normalized images whose masked patches have one color [1, C, 1, 1]: [B, C, H, W].

    Source: Guo et al. 2022 (FastMIM), section 3.
    """
    assert view.masked is not None
    masked = interpolate(view.masked.unflatten(1, (1, *view.grid)), images.shape[2:])
    return torch.where(masked > 0, color, normalize(images, mean, std))
