"""The config of a fine-tuning run: a classifier on a pre-trained encoder, all of which learns from labels."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bimkern.data.augment import CenterCrop
from bimkern.data.decoding import Alpha
from bimkern.data.label_mixing import LabelMixing
from bimkern.data.training_augment import TrainingAugment
from bimkern.image_size import ImageSize
from bimkern.models.checks import read_sizes
from bimkern.models.encoder import EncoderConfig
from bimkern.train.config.run import ConfigError, RunOptions, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(RunOptions):
    """Options of a fine-tuning run."""

    backbone: Path | None = None
    """Encoder to fine-tune: a pre-training run, an exported backbone, or a file or folder of timm, transformers or
    MAE."""
    from_scratch: bool = False
    """Begin with random weights of the same encoder, to see what pre-training is worth."""
    data: Path | None = None
    """Labeled images: a folder of class folders, a list of path and label (.csv, .jsonl), tar shards, or what else
    pre-training takes; or a folder with train and val, each of them one of these. Default: scikit-learn's digits."""
    val: Path | None = None
    """Images to evaluate on, as in --data. Default: val beside train."""
    alpha: Alpha | None = None
    """Alpha of images in gray or RGB: left out (drop), or the image is laid over white or black. Default: as in the
    training of the backbone, likewise --range."""
    held_out: float = 0.0
    """Share of the images to evaluate on and keep out of training, chosen by name, where there is no val."""
    eval_every: float = 1.0
    """Epochs between evaluations; the last step is always evaluated."""
    free: ClassVar[tuple[str, ...]] = (*RunOptions.free, "backbone", "val", "eval_every")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eval_every < math.inf:
            raise ConfigError(f"--eval-every must be above 0 and finite, got {self.eval_every:g}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """A complete fine-tuning run: the recipe's numbers, and the run's options."""

    augment: TrainingAugment
    run: FinetuneOptions
    encoder: EncoderConfig | None = None  # None: that of the backbone, which must say which it is
    mean: tuple[float, ...] | None = None  # of every channel, to normalize images; None: the backbone's; likewise std
    std: tuple[float, ...] | None = None
    num_classes: int | None = None  # None: as many as the labels name
    resized: ImageSize | None = None  # of the images; None: that of the encoder
    norm_first: bool = False  # normalize tokens by the encoder's last norm, then average; else a new norm comes behind
    layer_decay: float = 1.0  # a layer learns at this times the rate of the one above it
    drop_path: float = 0.0  # share of the images that skip the branches of the last layer; in others, fewer
    crop: CenterCrop  # of images that are evaluated
    mixing: LabelMixing | None = None  # of images and their labels; None: one class each
    ema: float | None = None  # decay, a step, of the averaged weights that are evaluated and exported; None: no average

    def __post_init__(self) -> None:
        read_sizes(self, "resized")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"FinetuneConfig: layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"FinetuneConfig: ema must be in (0, 1), got {self.ema}")  # 1 would never learn
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"FinetuneConfig: drop_path must be in [0, 1), got {self.drop_path}")
        if self.ema is not None and self.run.shard == "full":
            raise ConfigError(
                "--shard full: averaged weights are a second network, of which each rank has all; choose --shard "
                "optimizer, or leave ema out"
            )

    @property
    def known_encoder(self) -> EncoderConfig:
        """The encoder of a resolved config, which knows it."""
        assert self.encoder is not None
        return self.encoder

    @property
    def image_size(self) -> ImageSize:
        return self.known_encoder.image_size

    @property
    def channels(self) -> int:
        return self.known_encoder.channels

    @property
    def alpha(self) -> Alpha:
        return self.run.alpha or "drop"
