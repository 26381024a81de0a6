"""LocalMIM-style networks: a ViT with a decoder at each of several layers, against HOG of as many scales.

Shapes: B images, C channels, H W pixels, N patches, K kept, D width, E width of a decoder, M cells, P values of a cell.
Source: Wang et al. 2023 (LocalMIM), sections 3.1 to 3.3.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bimkern.dropin import layers, smaller
from bimkern.dropin.at_once import loss_at_once
from bimkern.dropin.hosts import hog as hog_layers
from bimkern.dropin.hosts import localmim_decoder, mae
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import Affine, sample, stand_ins, twin
from bimkern.ops import hog, masked_loss, scale_mask
from bimkern.ops.match import match_loss


def forward(self: Any, imgs: Tensor, mask_ratio: float = 0.75) -> Tensor:
    """Return the sum of the scales' losses, decoder by decoder, so that the activations of one at a time are held."""
    latents, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
    targets = _targets(self, imgs)
    total = torch.zeros((), device=imgs.device)
    for decoder, latent, target, scale in zip(self.decoder, latents, targets, self.scale, strict=True):
        total = total + _scale_loss(decoder, latent, ids_restore, target, mask, scale)
    return total


def _scale_loss(decoder: Any, x: Tensor, ids_restore: Tensor, target: Tensor, mask: Tensor, scale: float) -> Tensor:
    if not layers.has_kernels(x) or any(map(layers.has_hooks, decoder.modules())):  # or something listens to layers
        return masked_loss(decoder(x, ids_restore), target, scale_mask(mask, scale))
    pieces = localmim_decoder.read(decoder, scale, ids_restore.shape[1])

    def loss(x: Tensor) -> Tensor:
        x = layers.restore(pieces.embed(x), ids_restore, pieces.mask_token, pieces.pos)
        for layer in pieces.blocks:
            x = layer(x)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        wide = torch.promote_types(dtype, torch.float32)
        return match_loss(pieces.norm(x)[:, 1:], pieces.head, target.to(wide), mask, scale, dtype=dtype)

    return loss_at_once(decoder, loss, x)


def forward_encoder(self: Any, x: Tensor, mask_ratio: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """Encode the kept patches: tokens [B, 1+K, D] of every tapped layer, mask [B, N], ids_restore [B, N]."""
    tokens, mask, ids_restore = mae.embed_kept(self, x, mask_ratio)
    latents = []
    for index, layer in enumerate(self.blocks):
        tokens = layer(tokens)
        if index in self.ID:
            latents.append(self.norm[self.ID.index(index)](tokens))
    return latents, mask, ids_restore


def describe(self: Any, imgs: Tensor, k: int) -> Tensor:
    """Describe the cells of one scale: [B, M, P]."""
    layer = self.hog_enc[k]
    cell = hog_layers.cell_of(layer)
    if not self._bimkern_exact or not hog_layers.suits(layer, imgs, imgs.shape[1], None, cell):
        described: Tensor = self._bimkern_host.HOG(self, imgs, k)
        return described
    return hog(imgs, cell, layer.nbins, bias=hog_layers.bias_of(layer.conv.bias))


def forward_loss(self: Any, imgs: Tensor, pred: list[Tensor], mask: Tensor) -> Tensor:
    """Sum the errors of pred, [B, M, P] for every scale, each averaged over its masked cells."""
    total = torch.zeros((), device=imgs.device)
    for prediction, target, scale in zip(pred, _targets(self, imgs), self.scale, strict=True):
        total = total + masked_loss(prediction, target, scale_mask(mask, scale))
    return total


def _targets(self: Any, imgs: Tensor) -> list[Tensor]:
    """Describe all scales: in one pass over the images where every one of them is ours to describe."""
    encoders = self.hog_enc
    cells = [hog_layers.cell_of(layer) for layer in encoders] if _describes(self) else []
    bins = {layer.nbins for layer in encoders} if cells else set()
    if len(bins) != 1 or not all(
        hog_layers.suits(layer, imgs, imgs.shape[1], None, cell) for layer, cell in zip(encoders, cells, strict=True)
    ):
        return [self.HOG(imgs, k) for k in range(len(encoders))]
    biases = [hog_layers.bias_of(layer.conv.bias) for layer in encoders]
    pairs = None if None in biases else biases
    return list(hog(imgs, cells, bins.pop(), bias=pairs))  # type: ignore[arg-type]  # no None in it


def _describes(self: Any) -> bool:
    """Return whether HOG is replaced, so known to do what ours does, and all layers have or lack a bias."""
    ours = self._bimkern_exact and getattr(type(self), "HOG", None) is describe and "HOG" not in vars(self)
    return ours and len({layer.conv.bias is None for layer in self.hog_enc}) == 1


class _Brightness(nn.Module):
    """A HOG layer's stand-in: cheap, with as many values for every cell."""

    def __init__(self, nbins: int, cell: int, like: Tensor) -> None:
        super().__init__()
        self.nbins, self.cell = nbins, cell
        self.steps = torch.linspace(-1, 1, nbins, dtype=like.dtype, device=like.device)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, bins, h, w] of one channel [B, 1, H, W]."""
        return x[:, :, :: self.cell, :: self.cell] * self.steps


def _without_hog(module: Any, bins: int) -> dict[str, nn.Module]:
    p = module.patch_embed.proj.kernel_size[0]
    return {"hog_enc": nn.ModuleList(_Brightness(bins, int(p / scale), module.pos_embed) for scale in module.scale)}


def _short_decoder(decoder: Any) -> nn.Module:
    """Return a decoder with stand-ins for its layers."""
    name = next((name for name, child in decoder.named_children() if type(child) is nn.ModuleList), None)
    return twin(decoder, **({} if name is None else {name: stand_ins()}))


def _stand_in_blocks(number: int) -> nn.ModuleList:
    """Return as many stand-ins as there are layers, so that each tap has its own."""
    return nn.ModuleList(Affine(1.0 + 0.125 * (i % 3), 0.0625 * i) for i in range(number))


def _try_forward(module: Any) -> Trial:
    decoders = nn.ModuleList(map(_short_decoder, module.decoder))
    images = mae.images_of(module)
    for decoder, scale in zip(decoders, module.scale, strict=True):
        length = len(localmim_decoder.read(decoder, scale, module.pos_embed.shape[1] - 1).head.pred_weight)
    children = {"blocks": _stand_in_blocks(len(module.blocks)), "decoder": decoders}
    return Trial(args=(images, mae.RATIO), children=children | _without_hog(module, length // images.shape[1]))


def _try_encoder(module: Any) -> Trial:
    return Trial(args=(mae.images_of(module), mae.RATIO), children={"blocks": _stand_in_blocks(len(module.blocks))})


def _try_hog(module: Any) -> Trial:
    hog_layers.check_supported(module.hog_enc[0], 0)
    side = 2 * hog_layers.cell_of(module.hog_enc[0])
    channels = module.patch_embed.proj.weight.shape[1]
    return Trial(args=(hog_layers.whole_numbers(module.cls_token, channels, side), 0))


def _try_loss(module: Any) -> Trial:
    imgs = mae.images_of(module)
    N = module.pos_embed.shape[1] - 1
    pred = [
        sample(imgs, 2, int(N * scale**2), imgs.shape[1] * _BINS).flip(0).requires_grad_() for scale in module.scale
    ]
    mask = (torch.rand(2, N, device=imgs.device) < mae.RATIO).float()
    return Trial(args=(imgs, pred, mask), children=_without_hog(module, _BINS))


def _smaller(module: Any) -> nn.Module:
    length = module.patch_embed.proj.weight.shape[1] * _BINS
    return twin(
        module,
        patch_embed=smaller.embedding(module.patch_embed, "proj", "img_size", _SIDE),
        blocks=_stand_in_blocks(1 + len(module.ID)),
        ID=[0, *range(2, 1 + len(module.ID))],  # of layers, one of which is not tapped
        norm=smaller.narrow(module.norm, smaller.WIDTH),
        decoder=nn.ModuleList(localmim_decoder.narrow(decoder, length) for decoder in module.decoder),
        **smaller.tokens(module),
    )


_SIDE = 4  # of a patch, of which the finest scale takes a quarter
_BINS = 2
LOCALMIM = Host(
    name="LocalMIM-style ViT",
    attributes=(
        "patch_embed.proj",
        "patch_embed.img_size",
        "blocks",
        "norm.0",
        "decoder.0",
        "hog_enc.0.pooler",
        "ID",
        "scale",
    ),
    tensors={"cls_token": "1 1 D", "pos_embed": "1 1+N D"},
    parts=(
        Part(what="decoders, heads and losses, a scale at a time", method="forward", ours=forward, trial=_try_forward),
        Part(what="embedding of kept patches", method="forward_encoder", ours=forward_encoder, trial=_try_encoder),
        Part(what="random masking", method="random_masking", ours=mae.random_masking, trial=mae.try_masking),
        Part(what="HOG of all channels and scales in one pass", method="HOG", ours=describe, trial=_try_hog),
        Part(what="loss", method="forward_loss", ours=forward_loss, trial=_try_loss),
    ),
    smaller=_smaller,
)
