"""lightly's documented MAE: a module around its masked Vision Transformer and MAEDecoderTIMM, copied from its examples.

Shapes: B images, C channels, H W pixels, N patches, S = 1+N tokens, K kept, M masked, D width, P values of a patch.
Source: He et al. 2022 (MAE), section 3.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimkern.dropin import layers, smaller
from bimkern.dropin.lightly import patches_at_index, restore_at_index
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import Affine, sample, stand_ins, twin


def forward(self: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Predict the masked patches of images, and cut them out: both [B, M, P]."""
    if not _tiles(images, self.patch_size):
        return self._bimkern_host.forward(self, images)  # which says what is wrong, or has another target
    idx_keep, idx_mask = _draw(self, len(images), images.device)
    x_encoded = self.forward_encoder(images=images, idx_keep=idx_keep)
    x_pred = self.forward_decoder(x_encoded=x_encoded, idx_keep=idx_keep, idx_mask=idx_mask)
    return x_pred, patches_at_index(images, self.patch_size, idx_mask - 1)


def forward_decoder(self: Any, x_encoded: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
    """Predict the masked patches [B, M, P] from the encoded tokens [B, K, D]."""
    decoder = self.decoder
    tokens = decoder.embed(x_encoded)
    size = len(x_encoded), self.sequence_length
    tokens = restore_at_index(decoder.mask_token, size, idx_keep, tokens, decoder.decoder_pos_embed)
    tokens = decoder.decoder_norm(decoder.decoder_blocks(tokens))
    return decoder.predict(layers.gather(tokens, idx_mask))


def _tiles(images: Tensor, patch: int) -> bool:
    """Return whether patches of images are what the host would cut: of a square, floats, and constants."""
    plain = images.ndim == 4 and images.is_floating_point() and not images.requires_grad
    return plain and images.shape[2] == images.shape[3] and images.shape[2] % patch == 0


def _draw(self: Any, B: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw as lightly's random_token_mask does: tokens to keep [B, K], the class token first, and to mask [B, M]."""
    N = self.sequence_length - 1
    num_kept = int(N * (1 - self.mask_ratio))

    def patches() -> Tensor:
        noise = torch.rand(B, 1 + N, device=device)
        noise[:, 0] = -1
        return noise.argsort(dim=1)[:, 1:] - 1

    order = self._bimkern_order(patches, B, N, num_kept, device) + 1  # [B, N]
    return F.pad(order[:, :num_kept], (1, 0)), order[:, num_kept:]


class _Backbone(nn.Module):
    """Stands for a network that encodes images by what they hold, so that the masks show."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def encode(self, images: Tensor, idx_keep: Tensor) -> Tensor:
        steps = torch.linspace(-1, 1, self.width, dtype=images.dtype, device=images.device)
        tokens = (idx_keep[:, :, None] * steps).sin()  # [B, K, D]
        return tokens * images.mean(dim=(1, 2, 3))[:, None, None]


def _children(module: Any) -> dict[str, nn.Module]:
    cheap: dict[str, Any] = {
        "decoder_embed": Affine(1.25),
        "decoder_blocks": nn.Sequential(*stand_ins()),
        "decoder_pred": Affine(0.25),
    }
    width = module.decoder.mask_token.shape[2]
    return {"backbone": _Backbone(width), "decoder": twin(module.decoder, **cheap)}


def _try_forward(module: Any) -> Trial:
    decoder = module.decoder
    N = decoder.decoder_pos_embed.shape[1] - 1
    channels = decoder.decoder_pred.out_features // module.patch_size**2
    side = round(N**0.5) * module.patch_size
    images = sample(decoder.decoder_pos_embed, 2, channels, side, side)
    return Trial(args=(images,), children=_children(module))


def _try_decoder(module: Any) -> Trial:
    decoder = module.decoder
    S = decoder.decoder_pos_embed.shape[1]
    order = torch.rand(2, S, device=decoder.mask_token.device).argsort(dim=1)
    encoded = sample(decoder.mask_token, 2, S // 4, decoder.mask_token.shape[2]).requires_grad_()
    return Trial(args=(encoded, order[:, : S // 4], order[:, S // 4 :]), children=_children(module))


def _smaller(module: Any) -> nn.Module:
    decoder = module.decoder
    channels = decoder.decoder_pred.out_features // module.patch_size**2
    pred = smaller.narrow(decoder.decoder_pred, smaller.DECODER_WIDTH, channels * smaller.SIDE**2)
    small = twin(decoder, decoder_pred=pred, **smaller.decoder(decoder))
    return twin(module, decoder=small, patch_size=smaller.scaled(module.patch_size, module.patch_size))


MAE = Host(
    name="lightly MAE",
    package="lightly",
    tested=("1.5.26", "1.6.0"),
    attributes=(
        "backbone.encode",
        "decoder.embed",
        "decoder.predict",
        "decoder.decoder_embed",
        "decoder.decoder_blocks",
        "decoder.decoder_norm",
        "decoder.decoder_pred.out_features",
        "sequence_length",
        "patch_size",
        "mask_ratio",
    ),
    tensors={"decoder.mask_token": "1 1 D", "decoder.decoder_pos_embed": "1 S D"},
    parts=(
        Part(what="masks and target", method="forward", ours=forward, trial=_try_forward),
        Part(
            what="decoder's input and its masked tokens",
            method="forward_decoder",
            ours=forward_decoder,
            trial=_try_decoder,
        ),
    ),
    smaller=_smaller,
)
