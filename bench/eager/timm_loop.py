"""timm's own step of fine-tuning, of the parts that its train.py puts together.

Left out, in favor of this loop: the running mean of the loss, which waits for every step, and the scheduler.

Shapes: B images, C channels, S pixels a side, K classes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bimkern import optional
from bimkern.train.config.finetuning import FinetuneConfig


def timm_network(folder: Path, drop_path: float) -> nn.Module:
    """Return timm's network with the weights of a folder that the exporter wrote, ready to train."""
    timm = optional.load_timm("timm's own step needs timm")
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, drop_path_rate=drop_path)
    return model.train()


class TimmLoop:
    """timm's network, random erasing, mixup and CutMix, soft cross entropy, layer decay and autocast."""

    def __init__(self, network: nn.Module, config: FinetuneConfig, num_classes: int, dtype: torch.dtype) -> None:
        data, losses, optim = (optional.load(f"timm.{part}") for part in ("data", "loss", "optim"))
        assert config.mixing is not None
        assert config.mean is not None
        assert config.std is not None
        (self._device,) = {parameter.device for parameter in network.parameters()}
        self.network, self._dtype = network, dtype
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(1, -1, 1, 1) * 255 for values in (config.mean, config.std)
        )
        self._erase = data.random_erasing.RandomErasing(config.augment.erase_prob, mode="pixel", device=self._device)
        self._mix = data.Mixup(
            mixup_alpha=config.mixing.mixup,
            cutmix_alpha=config.mixing.cutmix,
            prob=config.mixing.prob,
            switch_prob=config.mixing.switch_prob,
            label_smoothing=config.mixing.smoothing,
            num_classes=num_classes,
        )
        self._loss = losses.SoftTargetCrossEntropy()
        self.optimizer: Any = optim.create_optimizer_v2(
            network,
            opt="adamw",
            lr=0.0,
            weight_decay=config.optim.weight_decay,
            betas=config.optim.betas,
            layer_decay=config.layer_decay,
        )

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on uint8 images [B, C, S, S] and their labels [B], and return the loss."""
        normalized = images.float().sub_(self._mean).div_(self._std)
        return self.train(*self._mix(self._erase(normalized), labels))

    def train(self, images: Tensor, targets: Tensor) -> Tensor:
        """Train on images that are augmented, and targets [B, K]."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss: Tensor = self._loss(self.network(images), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
