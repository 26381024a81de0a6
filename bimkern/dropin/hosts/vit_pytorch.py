"""vit-pytorch's MAE and SimMIM, which wrap an encoder of the same package.

Shapes: B images, N patches, K kept, M masked, D width, P values of a patch.
Source: He et al. 2022 (MAE); Xie et al. 2022 (SimMIM).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from bimkern.dropin import layers, smaller
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import Mixing, sample, twin
from bimkern.ops import masked_loss, pixel_targets, restore_tokens

_CUT = "b c (h p1) (w p2) -> b (h w) (p1 p2 c)"  # einops' words for what pixel_targets does
_PER_TOKEN = (nn.LayerNorm, nn.Linear, nn.Identity)


def pretrain_mae(self: Any, img: Tensor) -> Tensor:
    """Return the reconstruction loss of images [B, C, H, W]."""
    if img.requires_grad:  # the fused loss has no gradient for its target
        return self._bimkern_host.forward(self, img)
    patches = _cut(self.to_patch, img)  # [B, N, P]
    B, N, _ = patches.shape
    pos = _positions(self.encoder, N)
    embedded = None if _is_per_token(self.patch_to_emb) else self.patch_to_emb(patches)
    num_masked = int(self.masking_ratio * N)
    order = self._bimkern_order(
        lambda: torch.rand(B, N, device=img.device).argsort(dim=-1), B, N, num_masked, img.device
    )
    masked, keep = order[:, :num_masked], order[:, num_masked:]

    encoded = self.encoder.transformer(_embed(self, patches, embedded, keep, pos))  # [B, K, D]
    decoder_pos = self.decoder_pos_emb.weight[:N]
    decoded = self.decoder(_restore(self.enc_to_dec(encoded), keep, self.mask_token, decoder_pos))
    pred = self.to_pixels(layers.gather(decoded, masked))  # [B, M, P]
    return _mean_error(pred, layers.gather(patches, masked), "l2")


def pretrain_simmim(self: Any, img: Tensor) -> Tensor:
    """Return the reconstruction loss of images [B, C, H, W], over the number of masked patches."""
    if img.requires_grad:  # the fused loss has no gradient for its target
        return self._bimkern_host.forward(self, img)
    patches = _cut(self.to_patch, img)  # [B, N, P]
    B, N, _ = patches.shape
    pos = self.encoder.pos_embedding[0, 1 : N + 1]
    embedded = None if _is_per_token(self.patch_to_emb) else self.patch_to_emb(patches)
    num_masked = int(self.masking_ratio * N)
    drawn = self._bimkern_order(
        lambda: torch.rand(B, N, device=img.device).topk(k=num_masked, dim=-1).indices, B, N, num_masked, img.device
    )
    masked = drawn[:, :num_masked]
    is_masked = torch.zeros(B, N, device=img.device).scatter_(1, masked, 1.0)
    keep = is_masked.argsort(dim=1, stable=True)[:, : N - num_masked]

    tokens = _embed(self, patches, embedded, keep, None)  # [B, K, D]
    encoded = self.encoder.transformer(_restore(tokens, keep, self.mask_token, pos))
    pred = self.to_pixels(layers.gather(encoded, masked))  # [B, M, P]
    return _mean_error(pred, layers.gather(patches, masked), "l1") / num_masked


def _cut(to_patch: Any, img: Tensor) -> Tensor:
    """Cut images [B, C, H, W] into patches [B, N, P], by our op where the layer is einops' and cuts squares."""
    p = _side(to_patch)
    plain = img.ndim == 4 and img.dtype in (torch.float32, torch.float64)
    if p is None or not plain or img.shape[2] % p or img.shape[3] % p:
        return cast(Tensor, to_patch(img))
    return pixel_targets(img, p, normalize=False)


def _side(to_patch: Any) -> int | None:
    """Return the side of the squares that a layer of einops cuts; None for any other layer."""
    if not type(to_patch).__module__.startswith("einops.") or to_patch.pattern != _CUT or layers.has_hooks(to_patch):
        return None
    height, width = to_patch.axes_lengths["p1"], to_patch.axes_lengths["p2"]
    return int(height) if height == width else None


def _positions(encoder: Any, num_patches: int) -> Tensor:
    """Return the positions of patches [N, D], behind that of a class token if there is one."""
    return encoder.pos_embedding.flatten(0, -2)[int(encoder.pool == "cls") :][:num_patches]


def _is_per_token(layers_of_embedding: nn.Sequential) -> bool:
    return all(type(layer) in _PER_TOKEN and not layers.has_hooks(layer) for layer in layers_of_embedding)


def _embed(self: Any, patches: Tensor, embedded: Tensor | None, keep: Tensor, pos: Tensor | None) -> Tensor:
    """Embed the kept patches [B, K, D]: they alone where every patch is embedded by itself."""
    if embedded is not None:
        return layers.gather(embedded, keep, pos)
    tokens = self.patch_to_emb(layers.gather(patches, keep))
    return tokens if pos is None else tokens + pos[keep]


def _restore(visible: Tensor, keep: Tensor, mask_token: Tensor, pos: Tensor) -> Tensor:
    dtype = layers.same_dtype(visible, mask_token, pos)
    return restore_tokens(visible.to(dtype), keep, mask_token, pos, num_tokens=len(pos))


def _mean_error(pred: Tensor, target: Tensor, kind: str) -> Tensor:
    dtype = layers.same_dtype(pred, target)
    return masked_loss(pred, target, pred.new_ones(pred.shape[:2]), kind).to(dtype)


def _trial(module: Any, num_patches: int) -> Trial:
    """Make a call with patches in place of images, so that it does not matter how they are cut."""
    patches = sample(module.to_pixels.weight, 2, num_patches, module.to_pixels.out_features)
    encoder = twin(module.encoder, transformer=Mixing(1.5))
    return Trial(args=(patches,), children={"to_patch": nn.Identity(), "encoder": encoder, "decoder": Mixing(-0.75)})


def _try_mae(module: Any) -> Trial:
    return _trial(module, module.encoder.pos_embedding.shape[-2] - int(module.encoder.pool == "cls"))


def _try_simmim(module: Any) -> Trial:
    return _trial(module, module.encoder.pos_embedding.shape[-2] - 1)


def _smaller(module: Any, width: int, **changes: Any) -> nn.Module:
    """Return a module with few values per patch and channel; width: of the tokens that become pixels."""
    return twin(
        module,
        encoder=twin(module.encoder, pos_embedding=smaller.last(module.encoder.pos_embedding, smaller.WIDTH)),
        patch_to_emb=smaller.narrow(module.patch_to_emb, _FEW_VALUES, smaller.WIDTH),
        mask_token=(width,),
        to_pixels=smaller.narrow(module.to_pixels, width, _FEW_VALUES),
        **changes,
    )


def _smaller_mae(module: Any) -> nn.Module:
    is_narrower = not isinstance(module.enc_to_dec, nn.Identity)
    width = smaller.DECODER_WIDTH if is_narrower else smaller.WIDTH
    return _smaller(
        module,
        width,
        enc_to_dec=smaller.narrow(module.enc_to_dec, smaller.WIDTH, width),
        decoder_pos_emb=twin(module.decoder_pos_emb, weight=smaller.last(module.decoder_pos_emb.weight, width)),
        decoder_dim=width,
    )


def _smaller_simmim(module: Any) -> nn.Module:
    return _smaller(module, smaller.WIDTH)


_FEW_VALUES = 10  # of a patch
_SHARED = (
    "masking_ratio",
    "to_patch",
    "patch_to_emb",
    "to_pixels.out_features",
    "encoder.transformer",
    "encoder.pos_embedding",
)
MAE = Host(
    name="vit-pytorch MAE",
    package="vit-pytorch",
    tested=("1.26.11", "1.26.14"),
    attributes=(*_SHARED, "encoder.pool", "enc_to_dec", "decoder", "decoder_pos_emb.weight"),
    tensors={"mask_token": "D"},
    parts=(Part(what="embedding, decoder's input and loss", method="forward", ours=pretrain_mae, trial=_try_mae),),
    smaller=_smaller_mae,
)
SIMMIM = Host(
    name="vit-pytorch SimMIM",
    package="vit-pytorch",
    tested=("1.26.11", "1.26.14"),
    attributes=_SHARED,
    tensors={"mask_token": "D"},
    parts=(Part(what="embedding, mask tokens and loss", method="forward", ours=pretrain_simmim, trial=_try_simmim),),
    smaller=_smaller_simmim,
)
