"""A host in the structure of lightly's documented MAE: its modules, and a step of its functions around them.

Source: He et al. 2022 (MAE), section 3; lightly's documentation, examples, MAE.
"""

import warnings
from typing import Any

from torch import Tensor, nn

from bimkern import optional


class MAE(nn.Module):
    """Encoder over timm's ViT and decoder.

    Args:
        vit: of timm.
        width, depth, heads: of the decoder.
        mask_ratio: of the patches.
    """

    def __init__(self, vit: Any, width: int, depth: int, heads: int, mask_ratio: float = 0.75) -> None:
        super().__init__()
        modules = optional.load("lightly.models.modules")
        embed = vit.patch_embed
        self.mask_ratio = mask_ratio
        self.patch_size = embed.patch_size[0]
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # lightly 1.7 removes the decoder
            self.decoder = modules.MAEDecoderTIMM(
                num_patches=embed.num_patches,
                patch_size=self.patch_size,
                embed_dim=vit.embed_dim,
                decoder_embed_dim=width,
                decoder_depth=depth,
                decoder_num_heads=heads,
            )

    def forward_encoder(self, images: Tensor, idx_keep: Tensor | None = None) -> Tensor:
        return self.backbone.encode(images=images, idx_keep=idx_keep)

    def forward_decoder(self, x_encoded: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        utils = optional.load("lightly.models.utils")
        embedded = self.decoder.embed(x_encoded)
        tokens = utils.repeat_token(self.decoder.mask_token, (len(embedded), self.sequence_length))
        tokens = self.decoder.decode(utils.set_at_index(tokens, idx_keep, embedded.type_as(tokens)))
        return self.decoder.predict(utils.get_at_index(tokens, idx_mask))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        utils = optional.load("lightly.models.utils")
        size = len(images), self.sequence_length
        idx_keep, idx_mask = utils.random_token_mask(size=size, mask_ratio=self.mask_ratio, device=images.device)
        encoded = self.forward_encoder(images=images, idx_keep=idx_keep)
        predicted = self.forward_decoder(x_encoded=encoded, idx_keep=idx_keep, idx_mask=idx_mask)
        patches = utils.patchify(images, self.patch_size)
        return predicted, utils.get_at_index(patches, idx_mask - 1)  # ids of patches, without the class token
