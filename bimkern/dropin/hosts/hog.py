"""HOG layers: of MaskFeat in three layouts (SlowFast, FastMIM, mmselfsup), and of LocalMIM and its copies.

They bin a pixel by atan2 of float gradients. Where the exact angle lies on a boundary between bins, as at 15 % of a
photograph's pixels, the rounding of pixels / 255 decides there; ours does not round. So a layer and its replacement are
tried on whole numbers, on which both are exact and must agree.

Shapes: B images, C channels, H W pixels, h w cells.
Source: Wei et al. 2022 (MaskFeat), section 3.2; Wang et al. 2023 (LocalMIM), section 3.3.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from bimkern.dropin import layers, rounded_hog
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import twin
from bimkern.ops import hog
from bimkern.ops.hog import MAX_BINS, MAX_WINDOW

_WHAT = "HOG; angles on a bin's boundary are exact, with exact=False rounded as by the host"
_PATCHES = 14  # of a side, in mmselfsup's layer
_FULL = 2 * _PATCHES  # cells of a side for which mmselfsup's layer makes vectors of 2 x 2 cells


@torch.no_grad()
def forward_grid(self: Any, x: Tensor) -> Tensor:
    """Describe images [B, C, H, W]: [B, C, bins, h, w]."""
    if not suits(self, x, len(self.weight_x), _window(self)):
        host: Tensor = self._bimkern_host.forward(self, x)
        return host
    return _grid(self, x)


@torch.no_grad()
def forward_flat(self: Any, x: Tensor) -> Tensor:
    """Describe images [B, C, H, W]: [B, C * bins, h, w]."""
    if not suits(self, x, len(self.weight_x), _window(self)):
        host: Tensor = self._bimkern_host.forward(self, x)
        return host
    return _grid(self, x).flatten(1, 2)


@torch.no_grad()
def forward_patches(self: Any, x: Tensor) -> Tensor:
    """Describe images [B, C, H, W]: [B, 14 * 14, C * bins * u * u], and keep what the host keeps to draw them."""
    if not suits(self, x, len(self.weight_x), _window(self)):
        host: Tensor = self._bimkern_host.forward(self, x)
        return host
    self.h, self.w = x.shape[2:]
    side = x.shape[3] // self.pool  # in cells
    if not self._bimkern_exact or side % _PATCHES or x.shape[2] != x.shape[3]:
        self.out = _grid(self, x)
        reshaped: Tensor = self._reshape(self.out)
        return reshaped
    self.unfold_size = side // _PATCHES
    vectors = hog(x, self.pool, self.nbins, window=_window(self), patch=self.unfold_size * self.pool)
    self.out = _Patches(vectors, self.unfold_size)
    return vectors


class _Patches(NamedTuple):
    """What forward_patches keeps: vectors [B, 14 * 14, C * bins * u * u] of patches of u x u cells."""

    vectors: Tensor
    u: int


def _cells_of_patches(self: Any) -> Any:
    """Return what the host keeps, [B, C, bins, h, w], put in that order when it is asked for: few programs draw it."""
    if "out" not in vars(self):
        raise AttributeError("out")
    out = vars(self)["out"]
    if isinstance(out, _Patches):
        vectors, u = out
        patches = vectors.view(len(vectors), _PATCHES, _PATCHES, -1, self.nbins, u, u)
        out = vars(self)["out"] = patches.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)
    return out


def _keep_cells(self: Any, out: Any) -> None:
    vars(self)["out"] = out


def _keeps_cells(host_class: type) -> Mapping[str, Any]:
    """Return the attribute that shows what forward_patches kept as the host keeps it."""
    return {"out": property(_cells_of_patches, _keep_cells)}


@torch.no_grad()
def forward_channel(self: Any, x: Tensor) -> Tensor:
    """Describe one channel of images [B, 1, H, W]: [B, bins, h, w]."""
    cell = cell_of(self)
    if not suits(self, x, 1, None, cell):
        host: Tensor = self._bimkern_host.forward(self, x)
        return host
    if not self._bimkern_exact:
        return rounded_hog.one_channel(self.conv(x), self.nbins, cell)
    vectors = hog(x, cell, self.nbins, bias=bias_of(self.conv.bias))  # [B, h * w, bins]
    return vectors.unflatten(1, (x.shape[2] // cell, -1)).permute(0, 3, 1, 2)


def _grid(self: Any, x: Tensor) -> Tensor:
    if not self._bimkern_exact:
        return rounded_hog.per_channel(x, (self.weight_x, self.weight_y), self.nbins, self.pool, _kernel(self))
    vectors = hog(x, self.pool, self.nbins, window=_window(self))  # [B, h * w, C * bins]
    grid = vectors.view(len(x), x.shape[2] // self.pool, x.shape[3] // self.pool, x.shape[1], self.nbins)
    return grid.permute(0, 3, 4, 1, 2)


def suits(self: Any, x: Tensor, channels: int, window: int | None, cell: int | None = None) -> bool:
    """Return whether our op takes images; the host says itself what is wrong with others, or cuts them off."""
    cell = self.pool if cell is None else cell
    if x.ndim != 4 or x.shape[1] != channels or x.dtype != torch.float32 or not layers.has_kernels(x):
        return False
    if self.nbins > MAX_BINS:
        return False
    height, width = x.shape[2:]
    if height < 2 or width < 2 or height % cell or width % cell:
        return False
    return window is None or (window <= MAX_WINDOW and height == width and height % window == 0)


def _window(self: Any) -> int | None:
    return self.gaussian_window or None


def _kernel(self: Any) -> Tensor | None:
    """Return the Gaussian [G, G], under either of its names."""
    if not self.gaussian_window:
        return None
    kernel: Tensor = self.gkern if hasattr(self, "gkern") else self.gaussian_kernel
    return kernel


def cell_of(layer: Any) -> int:
    """Return the side of a cell of a layer that describes one channel."""
    size = layer.pooler.kernel_size
    sides = size if isinstance(size, (tuple, list)) else (size,)
    return int(sides[0])


# Bias on a GPU -> its version and values: read in every call, it would make each wait.
_biases = WeakIdKeyDictionary()


def bias_of(bias: Tensor | None) -> tuple[float, float] | None:
    """Return the pair that is added to gradients, as numbers; on a GPU without what `.data` changed."""
    if bias is None:
        return None
    if bias.device.type == "cpu" or bias.is_inference():
        x, y = bias.tolist()
        return x, y
    version, pair = _biases.get(bias, (None, None))
    if version != bias._version:
        x, y = bias.tolist()
        pair = (x, y)
        _biases[bias] = (bias._version, pair)
    return pair


def whole_numbers(like: Tensor, channels: int, side: int) -> Tensor:
    """Draw images on which float arithmetic is exact, and no angle is 45 degrees, which atan2 rounds even so.

    gx is a multiple of 3 and gy is not, or is 0 at the border. Small numbers keep other angles off the boundaries.
    """
    rows = torch.arange(side, device=like.device)[:, None]
    return (3 * torch.randint(8, (1, channels, side, side), device=like.device) + rows % 3).float()


def check_supported(module: Any, window: int) -> None:
    """Raise a ValueError for a layer that our op cannot serve."""
    for name, value, most in (("nbins", module.nbins, MAX_BINS), ("gaussian_window", window, MAX_WINDOW)):
        if value > most:
            raise ValueError(f"{name} must be at most {most}, got {value}")


def _try_grid(module: Any) -> Trial:
    check_supported(module, module.gaussian_window)
    side = 2 * math.lcm(module.pool, module.gaussian_window or 1)
    return Trial(args=(whole_numbers(module.weight_x, len(module.weight_x), side),))


def _try_patches(module: Any) -> Trial:
    check_supported(module, module.gaussian_window)
    side = math.lcm(_FULL * module.pool, module.gaussian_window or 1)
    return Trial(args=(whole_numbers(module.weight_x, len(module.weight_x), side),))


def _smaller(module: Any) -> nn.Module:
    return twin(module, pool=2)


def _try_channel(module: Any) -> Trial:
    check_supported(module, 0)
    return Trial(args=(whole_numbers(module.conv.weight, 1, 2 * cell_of(module)),))


_NAMES = ("nbins", "pool")  # gaussian_window is 0 where there is none
_KERNELS = {"weight_x": "C 1 3 3", "weight_y": "C 1 3 3"}
GENERATOR = Host(
    name="mmselfsup HOGGenerator",
    attributes=(*_NAMES, "gaussian_window", "_reshape", "generate_hog_image"),
    tensors=_KERNELS,
    constants=_keeps_cells,
    parts=(Part(what=_WHAT, method="forward", ours=forward_patches, trial=_try_patches),),
    smaller=_smaller,
)
MASKFEAT = Host(
    name="MaskFeat-style HOGLayerC",
    attributes=(*_NAMES, "gaussian_window"),
    tensors=_KERNELS,
    parts=(
        Part(what=_WHAT, method="forward", ours=forward_grid, trial=_try_grid),
        Part(what=_WHAT, method="forward", ours=forward_flat, trial=_try_grid),
    ),
)
LOCALMIM = Host(
    name="LocalMIM-style HOGLayer",
    attributes=("nbins", "conv.weight", "pooler.kernel_size"),
    tensors={"conv.weight": "2 1 3 3"},
    parts=(Part(what=_WHAT, method="forward", ours=forward_channel, trial=_try_channel),),
)
