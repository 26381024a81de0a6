"""Mixup, CutMix and label smoothing, by timm, with random numbers that follow from (seed, step).

Shapes: B images, C channels, H W pixels, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bimkern import optional
from bimkern.data.global_generators import lent_generators
from bimkern.rng import Stream


@dataclass(frozen=True, kw_only=True)
class LabelMixing:
    """How the images of a batch and their labels are mixed: the same way for all of a batch, as in timm's batch mode.

    Source: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix); the numbers are those of He et al. 2022 (MAE), table 9.
    """

    mixup: float = 0.8  # alpha of the beta distribution of the weights; 0: none
    cutmix: float = 1.0  # likewise, of the areas; 0: none
    prob: float = 1.0  # of a batch to be mixed
    switch_prob: float = 0.5  # of CutMix in place of mixup, where both are on
    smoothing: float = 0.1  # share of a target that all classes have together

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"LabelMixing: {name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"LabelMixing: {name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"LabelMixing: smoothing must be in [0, 1), got {self.smoothing}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def mix(self, images: Tensor, labels: Tensor, num_classes: int, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix image i with image B - 1 - i, and their labels alike.

        In a batch of an odd number, the middle image is its own partner and stays as it is.

        Args:
            images: [B, C, H, W], of a floating point dtype. They may be overwritten.
            labels: [B] int64 in [0, num_classes), on the same device; values are checked on a CPU alone.
            num_classes: K.
            seed: of the run.
            step: of the run; the same step is mixed in the same way.

        Returns:
            The mixed images, and targets [B, K] float32 whose rows sum to 1.

        Raises:
            ValueError: a shape, dtype or label is wrong.
            Unusable: timm is missing.
        """
        _check(images, labels, num_classes)
        mixup = optional.load_timm("mixup, CutMix and label smoothing need timm").data.mixup
        if not self.mixes:
            return images, mixup.mixup_target(labels, num_classes, smoothing=self.smoothing).float()
        mixing = mixup.Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.prob,
            switch_prob=self.switch_prob,
            label_smoothing=self.smoothing,
            num_classes=num_classes,
        )
        odd = len(labels) % 2 == 1
        with lent_generators(Stream.MIX, seed) as reseed:
            reseed(step)
            images, targets = mixing(*((_double_middle(images), _double_middle(labels)) if odd else (images, labels)))
        if odd:
            images, targets = _without_double(images), _without_double(targets)
        return images, targets.float()


def _check(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"LabelMixing.mix: images must be floats [B, C, H, W], got {images.dtype} {list(images.shape)}"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"LabelMixing.mix: labels must be int64 [B={len(images)}], got {labels.dtype} {list(labels.shape)}"
        )
    if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        found = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"LabelMixing.mix: labels must be in [0, num_classes={num_classes}), got {found}")


def _double_middle(values: Tensor) -> Tensor:
    """Return [B + 1, ...] with the middle row of an odd number of rows twice: timm wants an even number."""
    middle = len(values) // 2
    return torch.cat([values[: middle + 1], values[middle:]])


def _without_double(values: Tensor) -> Tensor:
    middle = len(values) // 2 - 1
    return torch.cat([values[:middle], values[middle + 1 :]])
