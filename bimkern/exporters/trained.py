"""The trained weights of a run, to be exported at every depth at which a head reads the encoder.

A backbone of depth K is the first K layers of the encoder. Every exported file says in its header what it holds.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimkern import pieces
from bimkern.data.decoding import Alpha, Range
from bimkern.image_size import ImageSize
from bimkern.mim.model import Method
from bimkern.models.encoder import EncoderConfig, Layout, Program, Weights
from bimkern.models.normalization import said_statistics
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.store import CheckpointError
from bimkern.train.checkpoint.streamed import read_all
from bimkern.train.config.run import Config, ConfigError
from bimkern.train.config.serialize import refuse_other
from bimkern.train.run_folder.folder import RunFolder

# The cls token gets no loss of its own, so features are those of the patches, averaged after the last norm; all
# methods fine-tune from the patches' average.
POOLING = "avg"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes an encoder's input: resized, cropped, scaled to [0, 1], normalized."""

    image_size: ImageSize
    interpolation: str  # bicubic or bilinear
    mean: tuple[float, ...]  # of every channel, likewise std
    std: tuple[float, ...]
    alpha: Alpha = "drop"  # how files are decoded (decoding.py), likewise range
    range: Range | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", ImageSize.read(self.image_size))

    @classmethod
    def said(cls, metadata: Mapping[str, str], encoder: EncoderConfig) -> "Preprocessing":
        """Read what Trained.metadata says of it, for an encoder.

        Raises:
            KeyError, ValueError, TypeError: it says nothing, or something else.
        """
        interpolation = metadata["interpolation"]
        mean, std = said_statistics(metadata, encoder.channels)
        stated = json.loads(metadata.get("range", "null"))
        decoded: dict[str, Any] = {
            "alpha": metadata.get("alpha", cls.alpha),
            "range": tuple(stated) if isinstance(stated, list) else stated,
        }
        return cls(image_size=encoder.image_size, interpolation=interpolation, mean=mean, std=std, **decoded)

    def metadata(self) -> dict[str, str]:
        """Say all but the image size in text, mean, std and range in JSON; alpha and range where they are stated."""
        said = {name: json.dumps(getattr(self, name)) for name in ("mean", "std")}
        alpha = {} if self.alpha == "drop" else {"alpha": self.alpha}
        stated = {} if self.range is None else {"range": json.dumps(self.range)}
        return {"interpolation": self.interpolation, **said, **alpha, **stated}

    def __str__(self) -> str:
        return f"{self.image_size} px, {self.interpolation}, mean {self.mean}, std {self.std}"


@dataclass(frozen=True)
class Trained:
    """The weights of a run after a step, and the config that says what they are."""

    config: Config
    step: int
    weights: Weights

    def cut(self, depth: int) -> dict[str, Tensor]:
        """Keep the first layers of the encoder, as `encoder.`, and the head that reads them, as `head.`."""
        method, kept = self.config.method, {}
        head = f"heads.{depths(method).index(depth)}."
        for name, tensor in self.weights.items():
            part, _, rest = name.partition(".")
            if part == "encoder" and method.encoder.layer_group(rest) <= depth:
                kept[name] = tensor
            elif name.startswith(head):
                kept["head." + name.removeprefix(head)] = tensor
        return kept

    def backbone(self, depth: int, layout: Layout) -> dict[str, Tensor]:
        """Name what cut() kept as another program does; the head is left out but for its first norm."""
        kept = self.cut(depth)
        encoder = {layout.name(name): tensor for name, tensor in below("encoder", kept)}
        norm = {}
        if layout.norm is not None:
            norm = {layout.norm + name: tensor for name, tensor in below("head.in_norm", kept)}
        # A table that was stored with the encoder is the one.
        return dict(layout.random) | dict(layout.tables) | encoder | norm

    def encoder(self, depth: int) -> EncoderConfig:
        return self.config.method.encoder.cut(depth)

    @property
    def preprocessing(self) -> Preprocessing:
        """What images went through in training, but for the random crops and flips."""
        return Preprocessing(
            image_size=self.config.method.encoder.image_size,
            interpolation=self.config.augment.interpolation,
            mean=self.config.method.mean,
            std=self.config.method.std,
            alpha=self.config.run.alpha,
            range=self.config.run.range,
        )

    def pixels(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of every channel where pixels are in [0, 255]."""
        images = self.preprocessing
        mean, std = ([round(255 * value, 3) for value in values] for values in (images.mean, images.std))
        return mean, std

    def layout(self, depth: int, program: Program, title: str) -> Layout:
        """Return the first layers in the terms of a program that goes by a title.

        Raises:
            ConfigError: it has no such encoder.
        """
        encoder = self.encoder(depth)
        layout = encoder.layout(program)
        if layout is None:
            raise ConfigError(
                f"{title} has no network for {type(encoder).__name__}; --format bimkern takes every encoder"
            )
        return layout

    def metadata(self, depth: int) -> dict[str, str]:
        """Say what an exported file holds, so that a loader can refuse what merely has the right shapes.

        Returns:
            The encoder, as in config.json, and how its images are prepared; encoder, mean and std are JSON.
        """
        return {
            "format": "pt",  # readers of safetensors look here for the framework that wrote the tensors
            "recipe": self.config.recipe,
            "step": str(self.step),
            "encoder": json.dumps(pieces.to_json(self.encoder(depth))),
            **self.preprocessing.metadata(),
            "global_pool": POOLING,
        }


def below(part: str, weights: Weights) -> Iterable[tuple[str, Tensor]]:
    """Yield the weights of a part by their names inside it."""
    prefix = f"{part}."
    return ((name.removeprefix(prefix), tensor) for name, tensor in weights.items() if name.startswith(prefix))


def depths(method: Method) -> tuple[int, ...]:
    """Return the depths that can be exported: the numbers of layers after which a head reads the encoder."""
    return tuple(tap + 1 for tap in method.taps)


def read_trained(path: Path) -> tuple[RunFolder, Trained]:
    """Read a run folder at its newest intact checkpoint, or one checkpoint of a run folder; nothing is changed.

    Raises:
        ConfigError: there is no run, its config is of another version, or the checkpoint is of another run.
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder; give a run folder or one of its checkpoints")
    run, above = RunFolder(path), RunFolder(path.resolve().parent.parent)
    if (config := run.config()) is not None:
        checkpoint = checkpoints.newest_intact(run.checkpoints)
        if checkpoint is None:
            raise CheckpointError(f"{path} has no checkpoint yet")
    elif (config := above.config()) is not None:
        run, checkpoint = above, checkpoints.load(path)
    else:
        raise ConfigError(f"{path} is neither a run folder, with a config.json, nor a checkpoint inside one")
    what = f"{path}: the checkpoint of step {checkpoint.step} is of a run"
    refuse_other(checkpoint.state.get("config"), config, what, "export it from that run's own folder")
    return run, Trained(config, checkpoint.step, read_all(checkpoint.model))
