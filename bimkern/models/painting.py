"""Images as a network takes them: normalized, and painted over where patches are masked.

Shapes: B images, C channels, H W pixels, N patches, D width.
"""

import torch
from torch import Tensor, nn
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


class PaintedEncoder(nn.Module):
    """An encoder whose embedding takes normalized images whole, so that masked patches can be painted over in them."""

    embedding: nn.Module  # from images [B, C, H, W] to tokens [B, N, D]

    def embed(self, images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        tokens: Tensor = self.embedding(normalize(images, mean, std))
        return tokens

    def embed_painted(self, images: Tensor, view: View, color: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        tokens: Tensor = self.embedding(paint(images, view, color, mean, std))
        return tokens
