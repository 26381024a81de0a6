"""HOG: oriented-gradient targets, as a module.

Shapes: B images, C channels, H W pixels, S cell sizes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bimkern.ops import hog

_BIAS = 1 / 3  # the largest that a 3 x 3 convolution of one channel draws


class HOG(nn.Module):
    """Describe the cells of images by the orientations of their gradients, at one cell size or several.

    Args:
        cells: side of a cell in pixels, or several, which share one pass over the image.
        bins: of a histogram.
        window: side of a Gaussian that weighs the pixels; None weighs all alike.
        patch: side in pixels of what makes one vector; None makes one of every cell.
        random_bias: draw a pair (x, y) from [-1/3, 1/3) for every cell size, once, and add it to every gradient, so
            that flat regions get an orientation. Images must then be normalized floats. The pairs are a buffer, `bias`
            [S, 2], saved and loaded with the model; set it in no other way, as forward keeps a copy on the host.
        generator: draws the bias; torch's own by default.

    Same as: bimkern.ops.hog, which says what images may be and how a vector is laid out.
    Source: Wei et al. 2022 (MaskFeat), section 3.2; bias: the program of Wang et al. 2023 (LocalMIM).

    Example:
        target = HOG(8, patch=16)(images)  # uint8 [B, 3, 224, 224] -> [B, 196, 108]
    """

    bias: Tensor | None
    _pairs: list[tuple[float, float]] | None

    def __init__(
        self,
        cells: int | Sequence[int],
        bins: int = 9,
        *,
        window: int | None = None,
        patch: int | None = None,
        random_bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.cells = cells if isinstance(cells, int) else tuple(cells)
        self.bins = bins
        self.window = window
        self.patch = patch
        sizes = (self.cells,) if isinstance(self.cells, int) else self.cells
        pairs = (2 * torch.rand(len(sizes), 2, generator=generator) - 1) * _BIAS if random_bias else None
        self.register_buffer("bias", pairs)
        _remember_bias(self)
        self.register_load_state_dict_post_hook(_remember_bias)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the vectors of every cell, or of every patch, float32; a tuple for several cell sizes."""
        if isinstance(self.cells, int):
            pair = None if self._pairs is None else self._pairs[0]
            return hog(images, self.cells, self.bins, window=self.window, bias=pair, patch=self.patch)
        return hog(images, self.cells, self.bins, window=self.window, bias=self._pairs, patch=self.patch)

    def extra_repr(self) -> str:
        """Show what is asked for."""
        return f"cells={self.cells}, bins={self.bins}, window={self.window}, patch={self.patch}"


def _remember_bias(module: HOG, _keys: object = None) -> None:
    """Copy the bias to the host: read from a GPU in every forward, it would make each wait."""
    module._pairs = None if module.bias is None else [(x, y) for x, y in module.bias.tolist()]
