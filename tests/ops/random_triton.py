"""Random inputs of the Triton kernels: sizes, strides, alignments, masks and values.

Shapes: B images, N tokens, P values a token.
"""

import random

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PIXELS = (torch.uint8, *FLOATS)


def gap():
    """Draw elements to leave out before a tensor or between its rows: packets, parts of one, and odd ones differ."""
    return 0 if random.random() < 0.6 else random.choice([1, 2, 3, 4, 5, 8, 16])


def strided(values, packed_rows=False):
    """Lay values out with gaps, after a shift, the slowest dimensions in any order; beside them all is NaN or 255.

    Args:
        packed_rows: only the end of a row is left out, up to a multiple of 8 values.
    """
    if packed_rows:
        strides = torch.empty(*values.shape[:-1], -(-values.shape[-1] // 8) * 8, device="meta").stride()
        return _laid_out(values, strides, max(1, values.shape[0]) * strides[0], shift=0)
    outer = list(range(values.ndim - 1))
    if random.random() < 0.2:
        random.shuffle(outer)
    strides, extent = [0] * (values.ndim - 1) + [1], values.shape[-1] + gap()
    for dim in reversed(outer):
        strides[dim], extent = extent, extent * values.shape[dim] + gap()
    return _laid_out(values, strides, extent, gap())


def in_channels_last(images):
    """Lay [B, C, H, W] out with the channels of a pixel side by side."""
    B, C, H, W = images.shape
    row = C * W + gap()
    return _laid_out(images, [row * H, 1, row, C], row * H * B, gap())


def _laid_out(values, strides, extent, shift):
    buffer = torch.full(
        (shift + max(extent, 1),), 255 if values.dtype == torch.uint8 else torch.nan, dtype=values.dtype
    )
    view = buffer.as_strided(values.shape, strides, shift)
    return view.copy_(values)


def weights(B, N, dtype):
    """Draw weights [B, N]: a mask, fractions, all or nothing."""
    kind = random.choice(["mask", "mask", "fractions", "all", "nothing"])
    masks = {"mask": (torch.rand(B, N) < 0.6).to(dtype), "fractions": torch.randint(0, 5, (B, N)).to(dtype) / 4}
    return strided(masks.get(kind, torch.full((B, N), float(kind == "all"), dtype=dtype)))


def length():
    """Draw P: 1, odd, of every alignment, beyond one tile's columns."""
    return random.choice([1, 2, 3, 7, 16, 31, random.randint(1, 80), 4 * random.randint(1, 80), 300])


def tokens(B, N, P, dtype, packed_rows):
    return strided(torch.randn(B, N, P).to(dtype), packed_rows)


def pixels(B, C, H, W, dtype):
    """Draw images [B, C, H, W]: bytes, or floats around 0."""
    values = torch.randint(0, 256, (B, C, H, W), dtype=torch.uint8)
    values = values if dtype == torch.uint8 else torch.randn(B, C, H, W).to(dtype)
    return in_channels_last(values) if random.random() < 0.25 else strided(values)


def statistics(C, dtype):
    """Draw mean and std, [C] each, or None."""
    drawn = torch.rand(C).to(dtype), (0.2 + torch.rand(C)).to(dtype)
    return tuple(x if random.random() < 0.7 else None for x in drawn)


def described(value):
    """Describe an argument of a case."""
    if not isinstance(value, torch.Tensor):
        return str(value)
    dtype = str(value.dtype).removeprefix("torch.")
    return (
        f"{dtype} {list(value.shape)} by {list(value.stride())} at {value.storage_offset()}"
        if value.ndim
        else str(value)
    )


def prediction(wide):
    """Draw the dtype of predictions; in float64, the interpreter makes zeros that should be bfloat16."""
    return random.choice([x for x in FLOATS if (x, wide) != (torch.bfloat16, torch.float64)])


def sizes(*most):
    """Draw a size up to each, rarely an empty one."""
    drawn = [random.randint(1, size) for size in most]
    if random.random() < 0.05:
        drawn[random.randrange(len(drawn))] = 0
    return drawn
