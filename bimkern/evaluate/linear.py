"""The linear probe: batch normalization without weights, then a linear classifier, on features that are cached.

Shapes: M training images, N test images, D features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bimkern.evaluate.errors import EvaluationError, ProbeDiverged, check_finite
from bimkern.evaluate.lars import LARS
from bimkern.mim.schedule import RATES, Cosine

_NORM_EPS, _INIT_STD = 1e-6, 0.01


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """How the classifier is trained.

    A data set smaller than a batch is one batch, at the same rate, and its epochs are repeated until the classifier has
    made min_steps: at a rate in proportion to the batch, LARS would hardly move it.

    Source: He et al. 2022 (MAE), table 10, and its published program.
    """

    base_lr: float = 0.1  # for 256 images
    batch_size: int = 16384
    epochs: int = 90
    warmup_epochs: int = 10
    min_steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.base_lr < math.inf:
            raise EvaluationError(f"--base-lr must be above 0 and finite, got {self.base_lr}")
        for name in ("batch_size", "epochs", "min_steps"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not RATES[0] <= self.peak_lr <= RATES[1]:
            raise EvaluationError(
                f"--base-lr {self.base_lr:g} for batches of {self.batch_size}: the peak, base_lr * batch_size / 256, "
                f"must be from {RATES[0]:.1e} to {RATES[1]:.1e}, got {self.peak_lr:.1e}"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise EvaluationError(f"warmup_epochs must be in [0, epochs={self.epochs}), got {self.warmup_epochs}")

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / 256

    def num_steps(self, num_images: int) -> int:
        """Return the optimizer steps on a number of training images."""
        per_epoch = max(1, num_images // self.batch_size)  # the rest of an epoch is left out, as in the program
        return max(self.epochs * per_epoch, self.min_steps)

    def accuracy(
        self,
        train: Tensor,
        train_labels: Tensor,
        test: Tensor,
        test_labels: Tensor,
        *,
        seed: int = 0,
        crops: int = 1,
    ) -> float:
        """Train the classifier and return the share of test images that it classifies correctly.

        Args:
            train: [M, D] float32, on any device.
            train_labels: [M] int64 in [0, classes), likewise test_labels [N].
            test: [N, D] float32.
            seed: of the initial weights and the order of the images.
            crops: features of every image among those of training; an epoch is as long as with one.

        Raises:
            EvaluationError: features are not finite.
            ProbeDiverged: its weights are not finite at the end, since its rate is too high.
        """
        for features in (train, test):
            check_finite(features)
        generator = torch.Generator().manual_seed(seed)
        model = build_probe(train.shape[1], int(train_labels.max()) + 1, generator).to(train.device)
        optimizer, schedule = LARS(model.parameters(), self.peak_lr), Cosine(warmup=self.warmup_epochs / self.epochs)
        steps = self.num_steps(len(train) // crops)
        size, order, used = min(self.batch_size, len(train)), torch.empty(0, dtype=torch.int64), 0
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = self.peak_lr * schedule.factor((step + 0.5) / steps)
            if size == len(train):
                batch, labels = train, train_labels
            else:
                if used + size > len(order):
                    order, used = torch.randperm(len(train), generator=generator).to(train.device), 0
                chosen = order[used : used + size]
                batch, labels, used = train[chosen], train_labels[chosen], used + size
            optimizer.zero_grad()
            cross_entropy(model(batch), labels).backward()
            optimizer.step()
        model.eval()
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise ProbeDiverged(f"the linear probe diverges at --base-lr {self.base_lr:g}; choose a smaller one")
        with torch.no_grad():
            predicted = torch.cat([model(block).argmax(dim=1) for block in test.split(self.batch_size)])
        return (predicted == test_labels).double().mean().item()


def build_probe(width: int, num_classes: int, generator: torch.Generator) -> nn.Sequential:
    """Build the classifier, from features [B, D] to logits [B, num_classes]."""
    linear = nn.utils.skip_init(nn.Linear, width, num_classes)
    nn.init.normal_(linear.weight, std=_INIT_STD, generator=generator)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=_NORM_EPS), linear)
