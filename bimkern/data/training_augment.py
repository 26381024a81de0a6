"""The augmentation of supervised training: random crops and flips of ours, RandAugment and random erasing of timm.

timm draws from the global random generators. They are seeded from (seed, draw id) for every image, so that its pixels
depend on neither workers, batches nor resume.

Shapes: B samples, C channels, H W pixels.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bimkern import optional
from bimkern.data.augment import Interpolation, PixelTransform, RandomResizedCrop
from bimkern.data.global_generators import lent_generators
from bimkern.data.integers import Int64
from bimkern.rng import Stream

# timm skips a section that it cannot read, and takes its usual operations for a set of them (-t) that it does not know.
_POLICY = re.compile(r"rand(-(m|n|inc|mmax)\d+|-mstd\d+(\.\d+)?|-p(0(\.\d+)?|1(\.0+)?)|-t(weights|3aw?))*")
_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class TrainingAugment(RandomResizedCrop):
    """Crop and flip as RandomResizedCrop does, then change the pixels as timm does: for training with labels.

    Erasing comes after normalization, so it is not the loader's part: see erase().

    Source: the fine-tuning recipes of He et al. 2022 (MAE), table 9; Cubuk et al. 2020 (RandAugment); Zhong et al. 2020
    (random erasing); timm's create_transform.
    """

    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"  # policy in timm's notation; None: no RandAugment
    erase_prob: float = 0.25  # share of the images with an erased rectangle, filled with normal noise
    color_jitter: float = 0.0  # strength for brightness, contrast and saturation, in place of RandAugment
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # color that fills what RandAugment moves in, in [0, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rand_augment is not None and not _POLICY.fullmatch(self.rand_augment):
            raise ValueError(
                "TrainingAugment: rand_augment must be a policy of timm such as rand-m9-mstd0.5-inc1, got "
                f"{self.rand_augment!r}"
            )
        if not 0 <= self.erase_prob <= 1:
            raise ValueError(f"TrainingAugment: erase_prob must be in [0, 1], got {self.erase_prob}")
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"TrainingAugment: mean must be in [0, 1], got {self.mean}")
        if not 0 <= self.color_jitter < math.inf:
            raise ValueError(f"TrainingAugment: color_jitter must be at least 0 and finite, got {self.color_jitter}")
        if self.color_jitter and self.rand_augment is not None:
            raise ValueError(
                f"TrainingAugment: color_jitter must be 0 beside rand_augment, got {self.color_jitter}; timm would "
                "ignore it; set rand_augment to None"
            )

    def pixel_transform(self, channels: int) -> PixelTransform | None:
        """Return RandAugment or the color jitter, None without both.

        Raises:
            ValueError: there are other than 3 channels.
            Unusable: timm is missing.
        """
        if self.rand_augment is None and not self.color_jitter:
            return None
        name = "color jitter" if self.rand_augment is None else "RandAugment"
        if channels != _CHANNELS:
            raise ValueError(
                f"TrainingAugment: {name} needs images of 3 channels, got {channels}; set rand_augment to None and "
                "color_jitter to 0"
            )
        optional.load_timm(f"{name} needs timm")
        return _OnPilImages(name, self)

    def erase(self, images: Tensor, draw_ids: Tensor, *, seed: int) -> Tensor:
        """Fill a rectangle of some images with normal noise, in place.

        Args:
            images: [B, C, H, W], normalized, of a floating point dtype. On a GPU the noise is drawn there, and differs
                from that of a CPU.
            draw_ids: [B] int64, of a Batch, on the CPU.
            seed: of the run.

        Returns:
            images.

        Raises:
            ValueError: images are not normalized, or there is not one id for each.
            Unusable: timm is missing.
        """
        if not images.is_floating_point() or images.dim() != 4:
            raise ValueError(
                f"TrainingAugment.erase: images must be normalized floats [B, C, H, W], got {images.dtype} "
                f"{list(images.shape)}; normalize them first"
            )
        if draw_ids.shape != images.shape[:1]:
            raise ValueError(f"TrainingAugment.erase: draw_ids must be [B={len(images)}], got {list(draw_ids.shape)}")
        if not self.erase_prob:
            return images
        timm = optional.load_timm("random erasing needs timm")
        erasing = timm.data.random_erasing.RandomErasing(self.erase_prob, mode="pixel", device=images.device)
        with lent_generators(Stream.ERASE, seed, images.device) as reseed:
            for image, draw_id in zip(images, draw_ids.tolist(), strict=True):
                reseed(draw_id)
                erasing(image)
        return images


@dataclass(frozen=True)
class _OnPilImages:
    """A PixelTransform that takes PIL images, one by one."""

    name: str
    augment: TrainingAugment

    def __call__(self, images: NDArray[np.uint8], draw_ids: Int64, seed: int) -> None:
        augment = self.augment
        transform = _timm_transform(
            augment.rand_augment, augment.color_jitter, augment.mean, augment.interpolation, min(images.shape[2:])
        )
        with lent_generators(Stream.AUGMENT, seed) as reseed:
            for image, draw_id in zip(images, draw_ids.tolist(), strict=True):
                reseed(draw_id)
                pixels = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
                image[:] = np.asarray(transform(pixels)).transpose(2, 0, 1)


@lru_cache(maxsize=8)
def _timm_transform(
    rand_augment: str | None,
    color_jitter: float,
    mean: tuple[float, float, float],
    interpolation: Interpolation,
    size: int,
) -> Callable[[Image.Image], Any]:
    """Return what timm does to a crop between the flip and the normalization."""
    timm = optional.load_timm("RandAugment needs timm")
    _, transform, _ = timm.data.create_transform(
        size,
        is_training=True,
        auto_augment=rand_augment,
        color_jitter=color_jitter or None,
        mean=mean,
        interpolation=interpolation,
        separate=True,
    )
    for operation in transform.transforms[0].ops if rand_augment else ():
        if operation.aug_fn is timm.data.auto_augment.posterize:
            operation.aug_fn = partial(_posterize, operation.aug_fn)
    return transform


def _posterize(posterize: Callable[..., Image.Image], image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Keep 0 bits too, which timm asks for at magnitude 10 and Pillow 13 refuses: black, as in the papers' programs."""
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)
