"""GreenMIM's autoencoder of pixels: its sparse Swin, one mask for the whole batch, and MAE's decoder.

Shapes: B images, N patches of the last level, which are the mask units.

Source: Huang et al. 2022 (GreenMIM), section 3.
"""

import torch
from torch import Tensor, nn

from bench.eager.network import Network
from bench.eager.swin_encoder import SwinEncoder
from bimkern.models.swin import SwinConfig


class SwinNetwork(Network):
    def build_encoder(self) -> nn.Module:
        assert isinstance(self.form.encoder, SwinConfig)
        return SwinEncoder(self.form.encoder)

    def noise(self, num_images: int) -> Tensor:
        """Draw 0 for the visible units and 1 for the others, the same ones of all images, [B, N]."""
        order = torch.rand(self.num_patches, device=self.mean.device).argsort()
        masked = torch.ones_like(order, dtype=torch.float32).scatter(0, order[: self.form.kept[0]], 0.0)
        return masked.expand(num_images, -1)

    def stage(self, stage: int, x: Tensor, ids_shuffle: Tensor) -> Tensor:
        """Run the encoder on images; what is visible of the first is visible of all."""
        size = self.form.encoder.image_size
        visible = torch.zeros(self.num_patches, dtype=torch.bool, device=x.device)
        visible[ids_shuffle[0, : self.form.kept[0]]] = True
        return self.encoder(x, visible.view(self.level.grid(*size)))
