"""The usual training step: autocast, one backward and one AdamW as torch gives it, for the network or for every stage.

Left out, in favour of these loops: waiting for the loss at every step, and the norm of the gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bench.eager.form import Form
from bench.eager.network import Network
from bench.eager.swin_network import SwinNetwork
from bimkern.models.swin import SwinConfig
from bimkern.train.config.optimizer import AdamWConfig


class Loop(ABC):
    """A network with its optimizers; the learning rate is that which the optimizers are given."""

    def __init__(self, network: Network, config: AdamWConfig, dtype: torch.dtype) -> None:
        self.network = network
        self.dtype = dtype
        self.optimizers = [adamw(list(parameters), config) for parameters in self.groups()]

    def step(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Train on uint8 images [B, C, H, W] and return the loss of every stage; noise [B, N] chooses the mask.

        Patches of equal noise keep their order.
        """
        noise = self.network.noise(len(images)) if noise is None else noise
        ids_shuffle = torch.argsort(noise, dim=1, stable=True)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        return torch.stack(self.train(self.network.normalize(images), ids_shuffle, ids_restore))

    @abstractmethod
    def groups(self) -> Iterable[Iterable[nn.Parameter]]:
        """Yield the parameters of every optimizer."""

    @abstractmethod
    def train(self, images: Tensor, ids_shuffle: Tensor, ids_restore: Tensor) -> list[Tensor]:
        """Run forward, backward and update; return the detached losses."""

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.network.mean.device.type, self.dtype, enabled=self.dtype != torch.float32)


class EndToEndLoop(Loop):
    """Source: He et al. 2022 (MAE), section 3 and table 8."""

    def __init__(self, network: Network, config: AdamWConfig, dtype: torch.dtype) -> None:
        super().__init__(network, config, dtype)
        self.forward: nn.Module = network  # or what wraps it, for several devices

    def groups(self) -> Iterable[Iterable[nn.Parameter]]:
        yield self.network.parameters()

    def train(self, images: Tensor, ids_shuffle: Tensor, ids_restore: Tensor) -> list[Tensor]:
        with self.autocast():
            losses = self.forward(images, ids_shuffle, ids_restore)
        losses.sum().backward()
        update(*self.optimizers)
        return list(losses.detach())


class LocalLoop(Loop):
    """Source: Luo et al. 2023 (BIM), algorithm 1."""

    def groups(self) -> Iterable[Iterable[nn.Parameter]]:
        encoder, first = self.network.encoder, 0
        for tap, head in zip(self.network.form.taps, self.network.heads, strict=True):
            embedding = [] if first else [encoder.cls_token, *encoder.patch_embed.parameters()]
            yield [*embedding, *encoder.blocks[first : tap + 1].parameters(), *head.parameters()]
            first = tap + 1

    def train(self, images: Tensor, ids_shuffle: Tensor, ids_restore: Tensor) -> list[Tensor]:
        losses, x = [], images
        for stage, optimizer in enumerate(self.optimizers):
            with self.autocast():
                x = self.network.stage(stage, x.detach(), ids_shuffle)
                loss = self.network.loss(stage, x, images, ids_restore)
            loss.backward()
            update(optimizer)
            losses.append(loss.detach())
        return losses


def adamw(parameters: list[nn.Parameter], config: AdamWConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas)


def update(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()


def usual_loop(form: Form, config: AdamWConfig, dtype: torch.dtype, device: torch.device) -> Loop:
    """Build the usual network and step of a method; the learning rate is zero."""
    loop = LocalLoop if form.local else EndToEndLoop
    network = SwinNetwork if isinstance(form.encoder, SwinConfig) else Network
    return loop(network(form).to(device), config, dtype)
