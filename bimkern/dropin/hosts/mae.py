"""MAE-style networks: one class with an encoder, a decoder and a loss, passed on as files from project to project.

Shapes: B images, C channels, H W pixels, N patches, K kept, D width, P values of a patch.
Source: He et al. 2022 (MAE), sections 3 and 4.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bimkern.dropin import layers, smaller
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import Affine, sample, stand_ins, twin

RATIO = 0.7


def forward_encoder(self: Any, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Encode the kept patches: tokens [B, 1+K, D], mask [B, N], ids_restore [B, N]."""
    tokens, mask, ids_restore = embed_kept(self, x, mask_ratio)
    for layer in self.blocks:
        tokens = layer(tokens)
    return self.norm(tokens), mask, ids_restore


def embed_kept(self: Any, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Embed the kept patches behind a class token: tokens [B, 1+K, D], mask [B, N], ids_restore [B, N]."""
    pos = self.pos_embed
    num_kept = int((pos.shape[1] - 1) * (1 - mask_ratio))
    convolution = getattr(self.patch_embed, "proj", None)
    return layers.encoder_input(self, self.patch_embed, convolution, x, pos, num_kept)


def random_masking(self: Any, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep some of the tokens [B, N, D]: kept [B, K, D], mask [B, N], ids_restore [B, N]."""
    B, N, _ = x.shape
    keep, mask, ids_restore = layers.draw_masks(self, B, N, int(N * (1 - mask_ratio)), x.device)
    return layers.gather(x, keep), mask, ids_restore


def forward_decoder(self: Any, x: Tensor, ids_restore: Tensor) -> Tensor:
    """Predict all patches [B, N, P] from the encoded ones [B, 1+K, D]."""
    x = layers.restore(self.decoder_embed(x), ids_restore, self.mask_token, self.decoder_pos_embed)
    for layer in self.decoder_blocks:
        x = layer(x)
    return self.decoder_pred(self.decoder_norm(x))[:, 1:, :]


def forward_loss(self: Any, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
    """Average the squared error of pred [B, N, P] over masked patches."""
    if imgs.requires_grad:  # the fused loss has no gradient for them
        return self._bimkern_host.forward_loss(self, imgs, pred, mask)
    return layers.pixel_loss(imgs, pred, mask, _patch(self), self.norm_pix_loss)


def _patch(self: Any) -> int:
    size = self.patch_embed.patch_size
    return size if isinstance(size, int) else size[0]


def images_of(module: Any) -> Tensor:
    """Draw two images of the size that the module was made for."""
    weight = module.patch_embed.proj.weight
    size = module.patch_embed.img_size
    return sample(weight, 2, weight.shape[1], *((size, size) if isinstance(size, int) else size))


def _try_encoder(module: Any) -> Trial:
    return Trial(args=(images_of(module), RATIO), children={"blocks": stand_ins()})


def try_masking(module: Any) -> Trial:
    _, tokens, width = module.pos_embed.shape
    return Trial(args=(sample(module.pos_embed, 2, tokens - 1, width).requires_grad_(), RATIO))


def _try_decoder(module: Any) -> Trial:
    N = module.pos_embed.shape[1] - 1
    ids_restore = torch.rand(2, N, device=module.pos_embed.device).argsort(dim=1)
    x = sample(module.pos_embed, 2, 1 + N // 8, module.pos_embed.shape[2]).requires_grad_()
    return Trial(args=(x, ids_restore), children={"decoder_blocks": stand_ins(), "decoder_pred": Affine(0.25)})


def _try_loss(module: Any) -> Trial:
    imgs = images_of(module)
    N = module.pos_embed.shape[1] - 1
    pred = sample(imgs, 2, N, imgs[0].numel() // N).flip(0).requires_grad_()
    mask = (torch.rand(2, N, device=imgs.device) < RATIO).float()
    return Trial(args=(imgs, pred, mask))


def _smaller(module: Any) -> nn.Module:
    return twin(
        module,
        patch_embed=smaller.embedding(module.patch_embed, "proj", "img_size"),
        cls_token=smaller.last(module.cls_token, smaller.WIDTH),
        pos_embed=smaller.last(module.pos_embed, smaller.WIDTH),
        blocks=stand_ins(),
        norm=smaller.narrow(module.norm, smaller.WIDTH),
        **smaller.decoder(module),
    )


MAE = Host(
    name="MAE-style MaskedAutoencoderViT",
    attributes=(
        "patch_embed.proj",
        "blocks",
        "norm",
        "decoder_embed",
        "decoder_blocks",
        "decoder_norm",
        "decoder_pred",
    ),
    tensors={
        "cls_token": "1 1 D",
        "pos_embed": "1 1+N D",
        "mask_token": "1 1 E",
        "decoder_pos_embed": "1 1+N E",
    },
    parts=(
        Part(what="embedding of kept patches", method="forward_encoder", ours=forward_encoder, trial=_try_encoder),
        Part(what="random masking", method="random_masking", ours=random_masking, trial=try_masking),
        Part(what="decoder's input", method="forward_decoder", ours=forward_decoder, trial=_try_decoder),
        Part(what="loss", method="forward_loss", ours=forward_loss, trial=_try_loss),
    ),
    smaller=_smaller,
)
