"""Hugging Face's ViTMAE, as its Trainer trains it: their network, autocast, and the fused AdamW that is their default.

Left out, in favor of it: the Trainer's own work around a step, such as clipping, logging and its loader.
"""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from bench.eager.form import Form
from bimkern import optional
from bimkern.exporters.hf import write_hf
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.models.vit import ViTConfig
from bimkern.train.config.run import Config


def has_network(form: Form) -> bool:
    """Return whether ViTMAE is the network of a form: a ViT with one decoder."""
    return isinstance(form.encoder, ViTConfig) and not form.local and len(form.taps) == 1


@functools.cache
def unusable() -> str | None:
    """Return why transformers cannot be used here, None where it can."""
    try:
        optional.load("bimkern.torchvision_compat")  # before transformers
        optional.load("transformers")
    except optional.Unusable as reason:
        return str(reason)
    return None


class HfLoop:
    """Train ViTMAEForPreTraining from the weights of a network; the learning rate is zero."""

    def __init__(self, config: Config, model: MIM, dtype: torch.dtype) -> None:
        """Take a config whose form has_network, its network, and the dtype of matrix products."""
        transformers = optional.load("transformers")
        encoder, self._colors, self._dtype = config.method.encoder, model.colors, dtype
        transformers.utils.logging.disable_progress_bar()
        with TemporaryDirectory() as folder:
            write_hf(Path(folder), Trained(config, 0, model.state_dict()), encoder.depth)
            self.network = transformers.ViTMAEForPreTraining.from_pretrained(folder).to(model.mean.device).train()
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [  # biases and norms do not decay
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": config.optim.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.optim.betas, fused=True)

    def step(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Train on uint8 images [B, C, H, W] and return the loss, [1]; noise [B, N] without ties chooses the mask."""
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss: Tensor = self.network(self._colors.normalize(images), noise=noise).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()[None]
