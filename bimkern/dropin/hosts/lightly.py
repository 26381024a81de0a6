"""lightly's masked Vision Transformers, over timm or torchvision: the kept tokens are gathered in `preprocess`.

Shapes: B images, C channels, H W pixels, S tokens with prefix, K kept, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bimkern.dropin import layers, smaller
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.dropin.trial import sample, twin


def preprocess(
    self: Any,
    images: Tensor,
    idx_mask: Tensor | None = None,
    idx_keep: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Embed images and keep the tokens in idx_keep [B, K]: [B, K, D]."""
    tokens = self._bimkern_host.preprocess(self, images, idx_mask, None, mask)
    return tokens if idx_keep is None else layers.gather(tokens, idx_keep)


def _try(module: Any) -> Trial:
    vit = module.vit
    weight = (vit.conv_proj if hasattr(vit, "conv_proj") else vit.patch_embed.proj).weight
    size = vit.image_size if hasattr(vit, "image_size") else vit.patch_embed.img_size
    images = sample(weight, 2, weight.shape[1], *((size, size) if isinstance(size, int) else size))
    S = module.sequence_length
    idx_keep = torch.rand(2, S, device=weight.device).argsort(dim=1)[:, : S // 2]
    return Trial(args=(images, None, idx_keep))


def _smaller(module: Any) -> nn.Module:
    vit = module.vit
    if hasattr(vit, "conv_proj"):  # of torchvision
        encoder = twin(vit.encoder, **smaller.tokens(vit.encoder))
        embedding = smaller.embedding(vit, "conv_proj", "image_size")
        vit = twin(embedding, encoder=encoder, hidden_dim=smaller.WIDTH, **smaller.tokens(vit))
    else:
        embedding = smaller.embedding(vit.patch_embed, "proj", "img_size")
        vit = twin(vit, patch_embed=embedding, **smaller.tokens(vit))
    return twin(module, vit=vit, **smaller.tokens(module))


TRANSFORMER = Host(
    name="lightly MaskedVisionTransformer",
    package="lightly",
    tested=("1.5.26", "1.6.0"),
    attributes=("vit", "preprocess", "images_to_tokens", "prepend_prefix_tokens", "add_pos_embed", "sequence_length"),
    tensors={"mask_token": "1 1 D"},
    parts=(Part(what="gathering of kept tokens", method="preprocess", ours=preprocess, trial=_try),),
    smaller=_smaller,
)
