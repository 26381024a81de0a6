"""Pre-training by a method's own flow, and fine-tuning of what it leaves.

Shapes: B images, N patches, D width.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.digits.images import Digits, Indices
from bench.digits.methods import ENCODER
from bimkern.data.augment import draw_ids, sample_sequence
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD, MIM
from bimkern.mim.schedule import Cosine, Schedule
from bimkern.models.layers import LayerNorm, Linear
from bimkern.models.vit import ViT
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import Config
from bimkern.train.optim.group import GroupOptimizer

CPU = torch.device("cpu")
BATCH = 64  # images of a step, everywhere
_FINE_TUNING = AdamWConfig(betas=(0.9, 0.999))  # He et al. 2022 (MAE), table 9; decay 0.05 as there
_FINE_TUNING_SCHEDULE = Cosine(warmup=0.1)


def pretrain(config: Config | None, images: Tensor, *, rate: float, steps: int, seed: int) -> ViT:
    """Train a method on images [B, C, H, W] uint8, as they are; return its encoder, untrained for None."""
    torch.manual_seed(seed)
    if config is None:
        return ViT(ENCODER)
    method, schedule, depth = config.method, config.schedule, config.method.encoder.depth
    model = MIM(method)
    groups = model.layer_groups() if schedule.per_group else None
    updates = [
        GroupOptimizer(name, group, config.optim, device=CPU, fp16=False, layer_groups=groups)
        for name, group in method.flow.partition(model).items()
    ]
    for step in range(steps):
        progress = (step + 0.5) / steps
        _set_rates(updates, rate, schedule, progress, depth)
        epochs, ids = sample_sequence(step * BATCH, BATCH, len(images), seed)
        batch = images[ids]
        views = model.views(batch, torch.from_numpy(draw_ids(epochs, ids)), seed)
        frozen = schedule.frozen_groups(progress, depth)
        method.flow.step(model, [MicroBatch(batch, views)], updates, frozen_groups=frozen)
    return model.encoder


def _set_rates(updates: list[GroupOptimizer], peak: float, schedule: Schedule, progress: float, depth: int = 1) -> None:
    for update in updates:
        update.set_rates(lambda group: peak * schedule.factor(progress, group.number, depth, head=group.head))


def cut(encoder: ViT, depth: int) -> ViT:
    """Copy an encoder's first depth layers."""
    encoder = deepcopy(encoder)
    encoder.blocks = encoder.blocks[:depth]
    return encoder


def pooled(encoder: ViT, images: Tensor) -> Tensor:
    """Average the patch tokens that an encoder puts out, with nothing masked: [B, D]."""
    tokens = encoder.embed(images, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))
    for layer in encoder.blocks:
        tokens = layer(tokens)
    return tokens[:, encoder.num_prefix :].mean(dim=1)


class Classifier(nn.Module):
    """An encoder, the mean of its patch tokens, a fresh norm and a linear layer.

    Source: He et al. 2022 (MAE), appendix A.1 "End-to-end fine-tuning"; the pooling as in its published program.
    """

    def __init__(self, encoder: ViT, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = LayerNorm(encoder.config.width)
        self.head = Linear(encoder.config.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(pooled(self.encoder, images)))


def finetune(
    encoder: ViT, digits: Digits, train: Indices, test: Indices, *, rate: float, steps: int, seed: int
) -> float:
    """Train a classifier on an encoder, the encoder with it, and return its accuracy."""
    torch.manual_seed(seed)
    labels = torch.from_numpy(digits.labels)
    model = Classifier(deepcopy(encoder), num_classes=10)
    update = GroupOptimizer("classifier", list(model.named_parameters()), _FINE_TUNING, device=CPU, fp16=False)
    for step in range(steps):
        _set_rates([update], rate, _FINE_TUNING_SCHEDULE, (step + 0.5) / steps)
        _, ids = sample_sequence(step * BATCH, BATCH, len(train), seed)
        batch = train[ids]
        update.scale(cross_entropy(model(digits.images[batch]), labels[batch])).backward()
        update.apply()
    with torch.no_grad():
        found = model(digits.images[test]).argmax(dim=1)
    return (found == labels[test]).double().mean().item()
