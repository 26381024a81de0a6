"""The training loop of both examples, and the numbers that it takes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bimkern.models.drop_path import draw_paths, set_drop_path
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.optim.layer_decay import decayed, layer_groups
from examples.transfer.errors import TransferError

# Without weight decay, as in the programs of BEiT (and ViTDet, which has no class token) and of Swin.
UNDECAYED = ("positions.table", "cls_token", "relative_position_bias_table")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a paper."""

    image_size: int  # pixels a side of a training crop
    batch_size: int
    lr: float
    weight_decay: float
    drop_path: float
    warmup: int  # steps, at most a tenth of all
    layer_decay: float = 1.0  # of the learning rate, from each layer of the encoder to the one below it
    epochs: float = 0  # either these
    steps: int = 0  # or these
    lr_drops: tuple[float, ...] = ()  # progress at which the rate falls to a tenth; without, it falls linearly to 0
    clip: float | None = None  # norm of the gradient

    @property
    def optim(self) -> AdamWConfig:
        return AdamWConfig(betas=(0.9, 0.999), weight_decay=self.weight_decay, clip=self.clip, undecayed=UNDECAYED)

    def num_steps(self, num_images: int) -> int:
        """Return the steps on some images, of which there is one."""
        return self.steps or math.ceil(self.epochs * num_images / min(self.batch_size, num_images))

    def lr_factor(self, step: int, steps: int) -> float:
        warmup = max(1, min(self.warmup, steps // 10))
        warm = min(1.0, (step + 1) / warmup)
        progress = step / steps
        drops = sum(progress >= drop for drop in self.lr_drops)
        return warm * (0.1**drops if self.lr_drops else 1 - progress)


def train(
    model: nn.Module,
    encoder: Any,
    samples: Dataset[Any],
    loss_of: Callable[[list[Any]], Tensor],
    recipe: Recipe,
    *,
    micro_batch: int | None = None,
    workers: int = 0,
    seed: int = 0,
) -> list[float]:
    """Train a network around an encoder and return the loss of every step, which is printed now and then.

    Args:
        model: the network.
        encoder: the encoder inside it, whose layers may learn at lower rates and be skipped by some images.
        samples: training images of any form.
        loss_of: computes the mean loss of some of them.
        recipe: how they are trained.
        micro_batch: samples of a batch at a time; their gradients are added. None: the batch.
        workers: processes that load samples.
        seed: of their order, crops and drop path.

    Raises:
        TransferError: there are no samples, or a loss or gradient is not finite.
    """
    if not len(samples):  # type: ignore[arg-type]
        raise TransferError("there is no image to train on")
    steps = recipe.num_steps(len(samples))  # type: ignore[arg-type]
    device, depth = next(model.parameters()).device, encoder.config.depth
    update = GroupOptimizer(
        "the network",
        list(model.named_parameters()),
        recipe.optim,
        device=device,
        fp16=False,
        layer_groups=layer_groups(model, encoder),
    )
    set_drop_path(encoder, recipe.drop_path)
    model.train()
    losses: list[float] = []
    for batch, step in zip(_batches(samples, recipe.batch_size, workers, seed), range(steps), strict=False):
        top = recipe.lr * recipe.lr_factor(step, steps)
        update.set_rates(lambda group, top=top: top * decayed(recipe.layer_decay, group, depth))
        draw_ids = torch.arange(len(batch)) + step * len(batch)
        size, loss = micro_batch or len(batch), 0.0
        for first in range(0, len(batch), size):
            part = batch[first : first + size]
            draw_paths(encoder, draw_ids[first : first + size], seed, device)
            share = loss_of(part) * len(part) / len(batch)
            share.backward()
            loss += share.item()
        if not math.isfinite(loss):
            raise TransferError(f"the loss of step {step + 1} is {loss}; lower --lr")
        update.apply()
        if update.skipped:
            raise TransferError(f"the gradient of step {step + 1} is not finite; lower --lr")
        losses.append(loss)
        if (step + 1) % max(1, steps // 20) == 0:
            print(f"step {step + 1}/{steps}  loss {loss:.4f}", flush=True)
    return losses


def _batches(samples: Dataset[Any], size: int, workers: int, seed: int) -> Iterator[Sequence[Any]]:
    """Yield whole batches for ever, in an order that depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        samples,
        batch_size=min(size, len(samples)),  # type: ignore[arg-type]
        shuffle=True,
        drop_last=True,
        collate_fn=list,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=generator,
    )
    while True:
        yield from loader
