"""Errors over masked patches: SimMIM's network, which compares images, and the loss of mmselfsup's heads (MaskFeat).

Shapes: B images, C channels, H W pixels, p side of a patch, h w patches, N tokens, P values of a token.
Source: Xie et al. 2022 (SimMIM), section 3.4; Wei et al. 2022 (MaskFeat), section 3.3.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bimkern.dropin import layers
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import Returns, sample
from bimkern.ops import masked_loss, masked_pixel_loss

_EPSILON = 1e-5  # masked pixels that SimMIM adds to those that there are


def pretrain(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute error of masked pixels of images [B, C, H, W]; mask: [B, h, w], 1 where masked."""
    p = self.patch_size
    if not layers.can_be_target(x) or x.shape[1] != self.in_chans or not isinstance(p, int) or not _tiles(x, mask, p):
        host: Tensor = self._bimkern_host.forward(self, x, mask)
        return host
    images = self.decoder(self.encoder(x, mask))
    B, C, H, W = images.shape
    if images.shape != x.shape:
        raise ValueError(f"SimMIM: the decoder must return images {list(x.shape)}, got {list(images.shape)}")
    patches = images.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1).reshape(B, -1, p * p * C)
    weight = mask.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    count = (mask.sum() * (p * p) + _EPSILON) / (p * p)  # in the mask's dtype, as the host adds
    loss = masked_pixel_loss(patches, x, weight, "l1", patch=p, normalize=False, denominator=count)
    return loss.to(layers.same_dtype(x, images, mask, count))


def _tiles(x: Tensor, mask: Tensor, p: int) -> bool:
    return x.ndim == 4 and mask.ndim == 3 and mask.shape == (len(x), x.shape[2] / p, x.shape[3] / p)


def error(self: Any, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean error of masked tokens, of pred and target [B, N, P]; mask: [B, N], 1 where masked."""
    kind = _KINDS.get(type(self.penalty))
    ours = kind and mask is not None and pred.ndim == 3 and pred.shape == target.shape and mask.shape == pred.shape[:2]
    if not ours or target.requires_grad or layers.has_hooks(self.penalty):
        host: Tensor = self._bimkern_host.forward(self, pred, target, mask)
        return host
    dtype = layers.same_dtype(pred, target)
    weight = mask.to(torch.promote_types(dtype, torch.float32))  # type: ignore[union-attr]  # there is one
    return masked_loss(pred, target, weight, kind).to(dtype) / self.channel  # type: ignore[arg-type]


_KINDS = {nn.L1Loss: "l1", nn.MSELoss: "l2"}


def _try_pretrain(module: Any) -> Trial:
    like, p = next(module.parameters()), module.patch_size
    if not isinstance(p, int):
        raise TypeError(f"patch_size must be an int, got {p!r}")
    images = sample(like, 2, module.in_chans, 2 * p, 3 * p)
    mask = torch.rand(2, 2, 3, device=like.device) < 0.6
    return Trial(args=(images, mask.long()), children={"encoder": Returns(images), "decoder": Returns(images.flip(0))})


def _try_error(module: Any) -> Trial:
    if type(module.penalty) not in _KINDS:
        raise TypeError(f"penalty must be L1Loss or MSELoss, got {type(module.penalty).__name__}")
    pred, target = torch.randn(2, 2, 7, 5, device="cpu").unbind()
    return Trial(args=(pred.requires_grad_(), target, torch.rand(2, 7, device="cpu") < 0.6))


SIMMIM = Host(
    name="SimMIM-style network",
    attributes=("encoder", "encoder_stride", "decoder", "in_chans", "patch_size"),
    parts=(Part(what="loss of masked pixels", method="forward", ours=pretrain, trial=_try_pretrain),),
)
MASKED_LOSS = Host(
    name="mmselfsup PixelReconstructionLoss",
    attributes=("penalty", "channel"),
    parts=(Part(what="loss of masked tokens", method="forward", ours=error, trial=_try_error),),
)
