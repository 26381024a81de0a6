"""What the hosts have in common: masks, embedding of the kept patches, the decoder's input, the loss.

Shapes: B images, C channels, H W pixels, p patch size, R prefix tokens, N patches, K kept, D width, P = p*p*C.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimkern.dropin.order import inverse
from bimkern.ops import embed_visible, gather_tokens, keep_to_mask, masked_pixel_loss, restore_tokens
from bimkern.ops._backend import DEVICES

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def draw_masks(
    module: Any, B: int, N: int, K: int, device: torch.device, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keep [B, K], mask [B, N] and ids_restore [B, N] as MAE does; noise [B, N] that is given is used."""
    if noise is None:
        shuffled = module._bimkern_order(lambda: _sort(torch.rand(B, N, device=device)), B, N, K, device)
    else:
        shuffled = _sort(noise).to(device)
    keep = shuffled[:, :K]
    return keep, keep_to_mask(keep, N), inverse(shuffled)


def _sort(noise: Tensor) -> Tensor:
    return torch.argsort(noise, dim=1)


def same_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that torch gives a sum of tensors."""
    return functools.reduce(torch.promote_types, (x.dtype for x in tensors))


def gather(tokens: Tensor, keep: Tensor, pos: Tensor | None = None, num_prefix: int = 0, num_masks: int = 1) -> Tensor:
    """Add positions and take the kept tokens, in the dtype of the sum."""
    dtype = tokens.dtype if pos is None else same_dtype(tokens, pos)
    return gather_tokens(tokens.to(dtype), keep, pos, num_prefix=num_prefix, num_masks=num_masks)


def encoder_input(
    module: Any,
    patch_embed: nn.Module,
    convolution: Any,
    images: Tensor,
    pos: Tensor,
    num_kept: int,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw masks and embed the kept patches, with positions, behind the class token.

    Args:
        module: of the host, which has the class token.
        patch_embed: of the host.
        convolution: its layer, as far as it has one.
        images: [B, C, H, W].
        pos: [1, 1+N, D].
        num_kept: K.
        noise: [B, N], given by the caller of the host, or None to draw it.

    Returns:
        Tokens [B, 1+K, D], mask [B, N] and ids_restore [B, N]. Only the kept patches are read where the embedding is a
        plain convolution; else all are, by the host, before the masks are drawn.
    """
    B, N = len(images), pos.shape[1] - 1
    patch_pos = pos[0, 1:]
    dtype = _product_dtype(images, convolution)
    fused = (
        dtype is not None and is_plain(patch_embed, convolution) and _tiles(patch_embed, convolution, images, patch_pos)
    )
    patches = None if fused else patch_embed(images)
    keep, mask, ids_restore = draw_masks(module, B, N, num_kept, images.device, noise)
    if patches is None:
        tokens = embed_visible(images, convolution.weight, convolution.bias, keep, patch_pos, dtype=dtype)
    else:
        tokens = gather(patches, keep, patch_pos)
    cls_token = (module.cls_token + pos[:, :1]).expand(B, -1, -1)
    return torch.cat([cls_token, tokens], dim=1), mask, ids_restore


def _product_dtype(images: Tensor, convolution: Any) -> torch.dtype | None:
    """Return the dtype in which a convolution would multiply; None where it would refuse, or is not there."""
    weight = getattr(convolution, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in (torch.float32, torch.float64) or not has_kernels(images):
        return None
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(images.device.type):
        return torch.get_autocast_dtype(images.device.type) if images.is_floating_point() else None
    return weight.dtype if images.dtype == weight.dtype else None


def is_plain(patch_embed: nn.Module, convolution: Any) -> bool:
    """Return whether a convolution cuts patches and does nothing else, and nothing listens to its calls."""
    if type(convolution) is not nn.Conv2d or convolution.bias is None or has_hooks(patch_embed):
        return False
    p = convolution.kernel_size[0]
    plain = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    return plain == ((p, p), (p, p), (0, 0), (1, 1), 1) and not has_hooks(convolution)


def has_kernels(x: Tensor) -> bool:
    """Return whether our kernels run where a tensor is; a device such as meta has not even autocast."""
    return x.device.type in DEVICES


def has_hooks(module: nn.Module) -> bool:
    """Return whether something listens to a module's calls, or took their place, so that they must be made."""
    return "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS)


def hooks_of(module: nn.Module) -> Iterator[dict[int, Any]]:
    """Yield torch's tables of the hooks of a module, of those in it and of their parameters, but for empty ones."""
    found = [getattr(each, name) for each in module.modules() for name in _HOOKS]
    yield from filter(None, [*found, *(p._backward_hooks for p in module.parameters())])


def can_be_target(images: Tensor) -> bool:
    """Return whether a fused loss reads images as hosts do: they need no gradient, and integers are not scaled."""
    return images.is_floating_point() and not images.requires_grad


def _tiles(patch_embed: Any, convolution: nn.Conv2d, images: Tensor, pos: Tensor) -> bool:
    """Return whether images have the size that the host was made for; it says itself what is wrong with others."""
    if images.ndim != 4 or images.shape[1] != convolution.in_channels:
        return False
    size = getattr(patch_embed, "img_size", None) or getattr(patch_embed, "image_size", None)
    height, width = images.shape[2:]
    if size is not None and (height, width) != ((size, size) if isinstance(size, int) else tuple(size)):
        return False
    p = convolution.kernel_size[0]
    return not height % p and not width % p and (height // p) * (width // p) == len(pos)


def restore(visible: Tensor, ids_restore: Tensor, mask_token: Tensor, pos: Tensor) -> Tensor:
    """Put visible tokens [B, 1+K, D] back in order with mask tokens between them, and add positions [1, 1+N, D].

    ids_restore: [B, N], as MAE returns it.
    """
    num_tokens, num_kept = pos.shape[1], visible.shape[1] - 1
    keep = inverse(ids_restore.to(visible.device))[:, :num_kept]  # [B, K]
    keep = F.pad(keep + 1, (1, 0))  # [B, 1+K]: the class token is token 0, as it gets a position, too
    dtype = same_dtype(visible, mask_token, pos)
    return restore_tokens(visible.to(dtype), keep, mask_token, pos[0], num_tokens=num_tokens)


def pixel_loss(images: Tensor, pred: Tensor, mask: Tensor, patch: int, normalize: bool) -> Tensor:
    """Average the squared error over masked patches, in the dtype that the plain formula has; mask: of any dtype."""
    weight = mask if mask.is_floating_point() else mask.float()
    loss = masked_pixel_loss(pred, images, weight, patch=patch, normalize=normalize)
    return loss.to(same_dtype(images, pred, mask))
