"""lightly's token functions by our ops, for training steps that patch() does not see, such as those of Lightning.

`get_at_index` has the signature of `lightly.models.utils`; the others take the place of two or three calls each.

Shapes: B images, C channels, H W pixels, p patch size, S tokens with prefix, N patches, K ids, D width, P = p*p*C.
"""

import torch
from torch import Tensor

from bimkern.dropin import layers
from bimkern.ops import _check as check
from bimkern.ops import masked_loss, pixel_targets, restore_tokens


def get_at_index(tokens: Tensor, index: Tensor) -> Tensor:
    """Select tokens, as lightly's function of this name.

    Args:
        tokens: [B, S, D], float32, float16, bfloat16 or float64.
        index: [B, K], int64 ids in [0, S), none twice in a row, unlike in lightly.

    Returns:
        [B, K, D], dtype of tokens; every bit is that of lightly.

    Raises:
        ValueError, TypeError: a shape or a dtype is off.

    Source: He et al. 2022 (MAE), section 3 "masking".
    """
    check.once(_check_get, (tokens, index))
    return layers.gather(tokens, index)


def restore_at_index(
    mask_token: Tensor, size: tuple[int, int], index: Tensor, value: Tensor, pos: Tensor | None = None
) -> Tensor:
    """Put tokens in their places, the mask token everywhere else, and add positions, in one pass.

    It is `set_at_index(repeat_token(mask_token, size), index, value.type_as(mask_token)) + pos` of lightly.

    Args:
        mask_token: [1, 1, D], float32, float16, bfloat16 or float64.
        size: (B, S).
        index: [B, K], int64 ids in [0, S), none twice in a row.
        value: [B, K, D], any of these dtypes.
        pos: [1, S, D], likewise. None adds nothing.

    Returns:
        [B, S, D], in the dtype that the sum has; every bit is that of lightly.

    Raises:
        ValueError, TypeError: size names another number of images than index, or a shape or a dtype is off.

    Source: He et al. 2022 (MAE), section 3 "MAE decoder".
    """
    B, S = size
    if len(index) != B:
        raise ValueError(f"restore_at_index: size must be (B={len(index)}, S), as index has rows, got {tuple(size)}")
    check.once(_check_restore, (mask_token, index, value, pos), S)
    dtype = mask_token.dtype if pos is None else layers.same_dtype(mask_token, pos)
    value = value.to(mask_token.dtype).to(dtype)
    return restore_tokens(value, index, mask_token, None if pos is None else pos[0], num_tokens=S)


def patches_at_index(images: Tensor, patch_size: int, index: Tensor) -> Tensor:
    """Cut images into patches and select some, without lightly's three copies of all pixels.

    It is `get_at_index(patchify(images, patch_size), index)` of lightly. As there, index counts patches alone, so that
    of tokens behind a class token is one more.

    Args:
        images: [B, C, H, W], float32, float16, bfloat16 or float64; H and W may differ. No gradient flows to them.
        patch_size: p.
        index: [B, K], int64 ids in [0, N), none twice in a row.

    Returns:
        [B, K, P], dtype of images; values (row, column, channel); every bit is that of lightly.

    Raises:
        ValueError, TypeError: a shape or a dtype is off; integers are no target.

    Source: He et al. 2022 (MAE), section 3 "reconstruction target".
    """
    if not images.is_floating_point():
        raise TypeError(f"patches_at_index: images must be floating, got {images.dtype}: divide by 255 first")
    check.once(_check_patches, (images, index))
    return layers.gather(pixel_targets(images, patch_size, normalize=False).to(images.dtype), index)


def patch_mse_loss(pred: Tensor, images: Tensor, patch_size: int, index: Tensor) -> Tensor:
    """Average the squared error of predicted patches.

    It is `mse_loss(pred, get_at_index(patchify(images, patch_size), index))` with the functions of lightly and torch.

    Args:
        pred: [B, K, P], any floating dtype.
        images, patch_size, index: as for patches_at_index.

    Returns:
        Scalar, dtype of the plain formula, which differs in rounding. Differentiable in pred. Zero where K is.

    Raises:
        ValueError, TypeError: a shape or a dtype is off.

    Source: He et al. 2022 (MAE), section 3 "reconstruction target".
    """
    check.once(_check_loss, (pred, images, index), patch_size)
    target = patches_at_index(images, patch_size, index)
    counted = torch.ones(index.shape, device=pred.device)
    return masked_loss(pred, target, counted).to(layers.same_dtype(pred, target))


def _check_get(tokens: Tensor, index: Tensor) -> None:
    check.shapes("get_at_index", tokens=(tokens, "B S D"), index=(index, "B K"))
    check.dtypes("get_at_index", tokens=(tokens, check.FLOATS), index=(index, torch.int64))


def _check_restore(mask_token: Tensor, index: Tensor, value: Tensor, pos: Tensor | None, num_tokens: int) -> None:
    op, shapes = "restore_at_index", {"index": (index, "B K"), "value": (value, "B K D"), "pos": (pos, "1 S D")}
    check.shapes(op, {"S": num_tokens}, mask_token=(mask_token, "1 1 D"), **shapes)
    floats = {"mask_token": mask_token, "value": value, "pos": pos}
    check.dtypes(op, index=(index, torch.int64), **{name: (x, check.FLOATS) for name, x in floats.items()})


def _check_patches(images: Tensor, index: Tensor) -> None:
    check.shapes("patches_at_index", images=(images, "B C H W"), index=(index, "B K"))
    check.dtypes("patches_at_index", images=(images, check.FLOATS), index=(index, torch.int64))


def _check_loss(pred: Tensor, images: Tensor, index: Tensor, patch_size: int) -> None:
    op = "patch_mse_loss"
    dims = check.shapes(op, images=(images, "B C H W"), index=(index, "B K"))
    check.shapes(op, dims | {"P": dims["C"] * patch_size**2}, pred=(pred, "B K P"))
    check.dtypes(op, pred=(pred, check.FLOATS), index=(index, torch.int64))
