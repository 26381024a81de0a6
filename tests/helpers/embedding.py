"""Inputs of embed_visible, and its two forms called alike."""

import torch

from bimkern.ops import embed_visible
from bimkern.ops._check import FLOATS
from bimkern.ops.embed_visible import embed_visible_reference

DEFAULT = {"B": 3, "C": 3, "H": 64, "W": 48, "p": 16, "R": 1, "K": 5, "D": 32}
CASES = [
    DEFAULT,
    *(DEFAULT | odd for odd in ({"R": 0}, {"R": 3}, {"B": 0}, {"K": 0}, {"K": 1}, {"K": 12}, {"R": 0, "K": 0})),
    *(DEFAULT | odd for odd in ({"C": 1}, {"C": 4}, {"D": 37}, {"D": 500}, {"D": 0}, {"C": 0})),
    DEFAULT | {"p": 1, "H": 5, "W": 7},
    DEFAULT | {"p": 7, "H": 28, "W": 21},
    DEFAULT | {"p": 14, "H": 28, "W": 98},
    DEFAULT | {"H": 0, "K": 0},
    DEFAULT | {"B": 2, "H": 224, "W": 224, "K": 49, "D": 768},
]
IMAGES = (torch.uint8, *FLOATS)
GRADS = (1, 2, 4, 5)  # weight, bias, pos, prefix


def draw_images(device, dtype, *shape):
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, device=device)
    return torch.rand(shape, device=device).to(dtype)


def sample(device, dtype=torch.float32, images=torch.uint8, *, B, C, H, W, p, R, K, D):
    """Return the arguments of the reference in their order, but for the dtype of the product."""
    N = (H // p) * (W // p)
    keep = torch.rand(B, N, device=device).argsort(dim=1)[:, :K].sort(dim=1).values
    weight, bias, pos, prefix = (torch.randn(s, device=device, dtype=dtype) for s in ((D, C, p, p), D, (N, D), (R, D)))
    mean = torch.randint(0, 256, (C,), device=device).to(dtype) / 256  # times 255 exact, or one pixel decides by luck
    std = 0.2 + torch.rand(C, device=device, dtype=dtype)
    return draw_images(device, images, B, C, H, W), weight, bias, keep, pos, prefix, mean, std


def ours(images, weight, bias, keep, pos, prefix, mean, std, dtype=None):
    return embed_visible(images, weight, bias, keep, pos, prefix=prefix, mean=mean, std=std, dtype=dtype)


def torchs(images, weight, bias, keep, pos, prefix, mean, std, dtype=None):
    normal = torch.promote_types(dtype or weight.dtype, torch.float32)
    mean, std = (None if values is None else values.to(normal) for values in (mean, std))
    return embed_visible_reference(images, weight, bias, keep, pos, prefix, mean, std, dtype or weight.dtype)


def in_dtype(fn, dtype):
    """Multiply in dtype, but in float64 for the truth."""
    return lambda images, weight, *rest: fn(
        images, weight, *rest, dtype=torch.float64 if weight.dtype == torch.float64 else dtype
    )
