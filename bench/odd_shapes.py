"""`python -m bench.odd_shapes`: call every op on awkward shapes, forward and backward, for a sanitizer to watch.

Shapes: B images, N patches, K kept patches, D width, R prefix tokens, p pixels a side of a patch.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bimkern.ops import (
    MatchLayers,
    embed_visible,
    gather_tokens,
    group_attention,
    group_windows,
    hog,
    keep_to_mask,
    masked_loss,
    masked_pixel_loss,
    match_loss,
    match_predict,
    pixel_targets,
    random_keep,
    restore_tokens,
    scale_mask,
)

# Single elements, primes, rows that fit no vector, all kept, none kept, none at all, what training has, and more tokens
# than the threads of a block take at once.
SHAPES = (
    *((1, 1, 1, 1), (3, 7, 5, 33), (5, 197, 49, 127), (2, 13, 13, 20)),
    *((2, 13, 0, 8), (0, 7, 3, 8), (4, 196, 49, 768), (1, 5003, 1250, 2)),
)


@dataclass(frozen=True)
class Inputs:
    """Makers of tensors of one shape and dtype."""

    dims: tuple[int, int, int, int]
    dtype: torch.dtype
    device: torch.device
    beyond: int = 0  # what ids in keep are too large by

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device, requires_grad=True)

    def strided(self, *shape: int) -> Tensor:
        """Make [B, T, D] that starts one value and one token late in a larger tensor, where no vector is aligned."""
        B, T, D = shape
        return self.floats(B, T + 1, D + 1)[:, 1:, 1:]

    def parameter(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, requires_grad=True)

    def keep(self) -> Tensor:
        """Draw ids that do not ascend."""
        B, N, K, _ = self.dims
        return random_keep(torch.arange(B, device=self.device), N, K, seed=1).flip(1) + self.beyond


def _embed(make: Inputs, images: Tensor, p: int, **options: Any) -> Tensor:
    D = make.dims[3]
    return embed_visible(
        images, make.parameter(D, 3, p, p), make.parameter(D), make.keep(), dtype=make.dtype, **options
    )


def _embed_visible(make: Inputs) -> Tensor:
    B, N, _, _ = make.dims
    return _embed(make, torch.randint(0, 256, (B, 3, 4, 4 * N), dtype=torch.uint8, device=make.device), 4)


def _embed_visible_all(make: Inputs) -> Tensor:
    """With every option, the patches of ViT-B/16, and images that get a gradient."""
    B, N, _, D = make.dims
    mean, std = make.parameter(3).detach(), make.parameter(3).detach().abs() + 0.2
    options = {"pos": make.parameter(N, D), "prefix": make.parameter(2, D), "mean": mean, "std": std}
    return _embed(make, make.floats(B, 3, 16, 16 * N), 16, **options)


def _gather_tokens(make: Inputs) -> Tensor:
    B, N, _, D = make.dims
    return gather_tokens(make.floats(B, 1 + N, D), make.keep(), make.floats(N, D), num_prefix=1)


def _gather_tokens_strided(make: Inputs) -> Tensor:
    B, N, _, D = make.dims
    return gather_tokens(make.strided(B, N, D), make.keep(), make.floats(N, D + 1)[:, 1:])


def _hog(make: Inputs) -> Tensor:
    B, N, _, _ = make.dims
    coarse, _fine = hog(make.floats(B, 3, 4, 4 * N).detach(), (4, 2), 9)
    return coarse


def _restore_tokens(make: Inputs) -> Tensor:
    B, N, K, D = make.dims
    visible, mask_token, pos = make.floats(B, 1 + K, D), make.floats(D), make.floats(N, D)
    return restore_tokens(visible, make.keep(), mask_token, pos, num_tokens=N, num_prefix=1)


def _restore_tokens_strided(make: Inputs) -> Tensor:
    B, N, K, D = make.dims
    pos = make.floats(N, D + 1)[:, 1:]
    return restore_tokens(make.strided(B, K, D), make.keep(), make.floats(D + 1)[1:], pos, num_tokens=N)


def _random_keep(make: Inputs) -> Tensor:
    B, N, K, _ = make.dims
    ids = torch.arange(B, device=make.device)
    keep, _within = random_keep(ids, N, K // 2, seed=1, parent=make.keep())
    return keep


def _masked_loss(make: Inputs) -> Tensor:
    B, N, _, D = make.dims
    target = torch.randn(B, N, D, device=make.device)
    return masked_loss(make.floats(B, N, D), target, keep_to_mask(make.keep(), N))


def _masked_loss_strided(make: Inputs) -> Tensor:
    B, N, _, D = make.dims
    return masked_loss(make.strided(B, N, D), make.strided(B, N, D).detach(), keep_to_mask(make.keep(), N), "l1")


def _masked_pixel_loss(make: Inputs) -> Tensor:
    B, N, _, _ = make.dims
    images = torch.randint(0, 256, (B, 3, 4, 4 * N), dtype=torch.uint8, device=make.device)
    return masked_pixel_loss(make.floats(B, N, 48), images, keep_to_mask(make.keep(), N), patch=4)


def _masked_pixel_loss_all(make: Inputs) -> Tensor:
    """With every option, odd patches and strides."""
    B, N, _, _ = make.dims
    images = make.strided(3 * B, 7, 7 * N).detach().unflatten(0, (B, 3))
    mean, std = make.parameter(3).detach(), make.parameter(3).detach().abs() + 0.2
    options: Any = {"patch": 7, "mean": mean, "std": std, "denominator": 3.0}
    return masked_pixel_loss(make.strided(B, N, 147), images, keep_to_mask(make.keep(), N), "l1", **options)


def _match_layers(make: Inputs, scale: float) -> MatchLayers:
    """Widths that no deconvolution halves."""
    D = make.dims[3]
    E, F = D // 2 + 1, D // 4 + 1
    pred = make.parameter(5, F if scale == 4 else E if scale == 2 else D, 1, 1), make.parameter(5)
    up1 = (make.parameter(D, E, 2, 2), make.parameter(E)) if scale > 1 else ()
    norm = (make.parameter(E), make.parameter(E)) if scale == 4 else ()
    up2 = (make.parameter(E, F, 2, 2), make.parameter(F)) if scale == 4 else ()
    return MatchLayers(*pred, *up1, *norm, *up2)


def _match_loss(make: Inputs, scale: float) -> Tensor:
    """On one row of tokens, or on two where they are pooled."""
    B, N, _, D = make.dims
    rows = 2 if scale < 1 else 1
    grid = (rows, rows * N)
    mask = keep_to_mask(make.keep(), N).repeat(1, rows**2)
    target = torch.randn(B, int(rows**2 * N * scale**2), 5, device=make.device)
    return match_loss(
        make.strided(B, rows**2 * N, D), _match_layers(make, scale), target, mask, scale, grid=grid, dtype=make.dtype
    )


def _group_attention(make: Inputs, shared: bool) -> Tensor:
    """For one mask of all images, or one for each."""
    B, N, K, D = make.dims
    keep = (make.keep().cpu() - make.beyond).sort(dim=1).values
    keep = torch.arange(K)[None] if shared else keep
    groups = group_windows(keep, (1, N), 5, 2).to(make.device)
    heads = 1 if D % 2 else 2
    return group_attention(make.strided(B, K, 3 * D), make.parameter(2 * min(5, N) - 1, heads), groups, heads)


def _group_windows(make: Inputs) -> Tensor:
    _, N, _, _ = make.dims
    return group_windows(make.keep().cpu() - make.beyond, (1, N), 5, 2).members


def _match_predict(make: Inputs) -> Tensor:
    B, N, _, D = make.dims
    return match_predict(make.floats(B, N, D), _match_layers(make, 4), 4, grid=(1, N))


def _pixel_targets(make: Inputs) -> Tensor:
    B, N, _, _ = make.dims
    return pixel_targets(make.floats(B, 3, 4, 4 * N), patch=4)


def _scale_mask(make: Inputs) -> Tensor:
    B, N, _, _ = make.dims
    return scale_mask(scale_mask(make.floats(B, N), 3, grid=(1, N)), 1 / 3, grid=(3, 3 * N))


Call = Callable[[Inputs], Tensor]

CALLS: dict[str, tuple[Call, ...]] = {
    "embed_visible": (_embed_visible, _embed_visible_all),
    "gather_tokens": (_gather_tokens, _gather_tokens_strided),
    "group_attention": tuple(functools.partial(_group_attention, shared=shared) for shared in (True, False)),
    "group_windows": (_group_windows,),
    "hog": (_hog,),
    "keep_to_mask": (lambda make: keep_to_mask(make.keep(), make.dims[1]),),
    "masked_loss": (_masked_loss, _masked_loss_strided),
    "masked_pixel_loss": (_masked_pixel_loss, _masked_pixel_loss_all),
    "match_loss": tuple(functools.partial(_match_loss, scale=scale) for scale in (4, 2, 1, 0.5)),
    "match_predict": (_match_predict,),
    "pixel_targets": (_pixel_targets,),
    "random_keep": (_random_keep,),
    "restore_tokens": (_restore_tokens, _restore_tokens_strided),
    "scale_mask": (_scale_mask,),
}


def call_all(device: torch.device) -> int:
    """Call every op in every way on every shape in every dtype and return the number of calls.

    On a GPU, where ids are not checked, also with ids that are out of range.
    """
    count = 0
    dtypes, beyond = (torch.float32, torch.bfloat16, torch.float16), (0, 2**40) if device.type == "cuda" else (0,)
    for call in itertools.chain.from_iterable(CALLS.values()):
        for chosen in itertools.product(SHAPES, dtypes, (device,), beyond):
            output = call(Inputs(*chosen))
            if output.requires_grad:
                output.backward(torch.randn_like(output))
            count += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.odd_shapes", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    print(f"{call_all(parser.parse_args().device)} calls")
