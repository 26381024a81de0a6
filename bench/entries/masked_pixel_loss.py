"""masked_pixel_loss against normalizing, patchifying and comparing."""

import math

import torch
from torch import Tensor

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bimkern.ops import keep_to_mask
from bimkern.ops.masked_pixel_loss import masked_pixel_loss, masked_pixel_loss_reference


def patchify(images: Tensor, patch: int) -> Tensor:
    B, C, H, W = images.shape
    cells = images.reshape(B, C, H // patch, patch, W // patch, patch)
    return torch.einsum("nchpwq->nhwpqc", cells).reshape(B, -1, patch**2 * C)


def normalized(vectors: Tensor) -> Tensor:
    mean, variance = vectors.mean(dim=-1, keepdim=True), vectors.var(dim=-1, keepdim=True)
    return (vectors - mean) / (variance + 1e-6) ** 0.5


def usual(pred: Tensor, images: Tensor, weight: Tensor, mean: Tensor, std: Tensor, patch: int) -> Tensor:
    """The usual form: normalized images, all their patches, all errors, of which the visible ones are dropped."""
    pixels = (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    loss = (pred - normalized(patchify(pixels, patch))) ** 2
    return (loss.mean(dim=-1) * weight).sum() / weight.sum()


def select_first(pred: Tensor, images: Tensor, mask: Tensor, mean: Tensor, std: Tensor, patch: int) -> Tensor:
    """The best form in plain torch: masked patches are cut from the bytes before anything else."""
    vectors = patchify(images, patch)[mask].unflatten(-1, (-1, images.shape[1]))
    return (pred[mask] - normalized(((vectors / 255 - mean) / std).flatten(1))).square().mean()


@entry("masked_pixel_loss", shapes=shapes.PIXEL_LOSS)
def measure(case: Case) -> Measure:
    """Mean squared error of masked patches, normalized one by one, from uint8 images."""
    B, N, K, p = (case.dims[letter] for letter in "BNKp")
    side, length = math.isqrt(N) * p, 3 * p * p
    pred = inputs.floats(case, "B", "N", length)
    images = torch.randint(0, 256, (B, 3, side, side), dtype=torch.uint8, device=case.device)
    weight = keep_to_mask(inputs.keep(case), N)
    mask, total = weight.bool(), weight.sum()
    mean, std = (torch.rand(3, device=case.device) + 0.2 for _ in range(2))
    compiled = case.compiled(masked_pixel_loss_reference)
    # Masked rows of predictions and bytes of the images in; back: the same, and all gradients out.
    masked = B * (N - K) * length * (case.itemsize + 1) + weight.nbytes
    return Measure(
        ours=lambda: masked_pixel_loss(pred, images, weight, patch=p, mean=mean, std=std, denominator=total),
        rivals={
            "usual": lambda: usual(pred, images, weight, mean, std, p),
            "select first": lambda: select_first(pred, images, mask, mean, std, p),
            "compile": lambda: compiled(pred, images, weight, total, mean, std, p, True, False),
        },
        reference=lambda: masked_pixel_loss_reference(pred, images, weight, total, mean, std, p, True, False),
        leaves=[pred],
        bytes=masked if case.pass_name == "fwd" else 2 * masked + B * N * length * case.itemsize,
    )
