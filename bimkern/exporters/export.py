"""Exported weights: what other programs take from a run, for every depth at which a head reads the encoder.

A backbone of depth K is the first K blocks of the encoder. Every file says in its header what it holds.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.files import atomic
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD, Method
from bimkern.mim.targets import PixelTarget
from bimkern.models import descriptions, layouts
from bimkern.models.descriptions import Preprocessing
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig
from bimkern.train.checkpoint import safetensors_writer
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.store import CheckpointError
from bimkern.train.config.run import Config, ConfigError
from bimkern.train.config.serialize import refuse_other
from bimkern.train.run_folder.folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """The weights of a run after a step, and the config that says what they are."""

    config: Config
    step: int
    weights: layouts.Weights

    def cut(self, depth: int) -> dict[str, Tensor]:
        """Return the weights of the first depth blocks and of the head behind them."""
        return layouts.cut(self.weights, depth=depth, head=depths(self.config.method).index(depth))

    def encoder(self, depth: int) -> ViTConfig:
        return replace(self.config.method.encoder, depth=depth)

    @property
    def preprocessing(self) -> Preprocessing:
        """What images went through in training, but for the random crops and flips."""
        return Preprocessing(
            image_size=self.config.method.encoder.image_size,
            interpolation=self.config.augment.interpolation,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    def metadata(self, depth: int) -> dict[str, str]:
        """Say what an exported file holds, so that a loader can refuse what merely has the right shapes.

        Returns:
            Numbers of the encoder and of its images, as text; mean and std are JSON lists.
        """
        encoder, images = self.encoder(depth), self.preprocessing
        sizes = ("depth", "width", "num_heads", "mlp_ratio", "patch", "image_size", "channels")
        return {
            "format": "pt",  # readers of safetensors look here for the framework that wrote the tensors
            "recipe": self.config.recipe,
            "step": str(self.step),
            **{name: str(getattr(encoder, name)) for name in sizes},
            "interpolation": images.interpolation,
            "mean": json.dumps(images.mean),
            "std": json.dumps(images.std),
            "global_pool": descriptions.POOLING,
        }


def depths(method: Method) -> tuple[int, ...]:
    """Return the depths that can be exported: the numbers of blocks after which a head reads the encoder."""
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
    return run, Trained(config, checkpoint.step, checkpoint.model)


def write_backbones(folder: Path, trained: Trained) -> None:
    """Write a backbone for every depth, as write_timm does."""
    for depth in depths(trained.config.method):
        write_timm(folder / f"backbone-depth{depth:02d}", trained, depth)


def write_timm(path: Path, trained: Trained, depth: int) -> None:
    """Write a folder for timm.create_model("local-dir:..."): the encoder and its last norm, without a classifier.

    Raises:
        ConfigError: the folder cannot be written.
    """
    weights = layouts.to_timm(trained.cut(depth), trained.config.method.encoder.grid)
    _save(path / layouts.WEIGHTS, weights, trained.metadata(depth))
    _write_json(path / "config.json", descriptions.timm_config(trained.encoder(depth), trained.preprocessing))


def write_mae_program(path: Path, trained: Trained, depth: int) -> None:
    """Write what the published MAE program loads: a file of torch.save with encoder and decoder under "model".

    Raises:
        ConfigError: the method is not MAE's at this depth, or the file cannot be written.
    """
    _mae_pieces(trained, depth)
    weights = layouts.to_mae_program(trained.cut(depth), trained.config.method.encoder.grid)
    content = io.BytesIO()  # written to a full disk, torch.save speaks of an internal check instead
    torch.save({"model": weights, "metadata": trained.metadata(depth)}, content)
    with _whole(path) as scratch:
        scratch.write_bytes(content.getbuffer())


def write_hf(path: Path, trained: Trained, depth: int) -> None:
    """Write a folder that ViTMAEForPreTraining.from_pretrained of transformers takes: encoder and decoder.

    Raises:
        ConfigError: the method is not MAE's at this depth, or the folder cannot be written.
    """
    method = trained.config.method
    masker, head, target = _mae_pieces(trained, depth)
    ratio = masker.ratios[min(depths(method).index(depth), len(masker.ratios) - 1)]
    config = descriptions.hf_config(trained.encoder(depth), head, mask_ratio=ratio, normalize=target.normalize)
    _save(path / layouts.WEIGHTS, layouts.to_hf(trained.cut(depth), method.encoder.grid), trained.metadata(depth))
    _write_json(path / "config.json", config)
    _write_json(path / "preprocessor_config.json", descriptions.hf_preprocessor(trained.preprocessing))


def _mae_pieces(trained: Trained, depth: int) -> tuple[RandomDrop, DecoderConfig, PixelTarget]:
    """Return what is MAE's of a method: what hides, what decodes and what is predicted after depth blocks.

    Raises:
        ConfigError: a piece is another, which the layouts of MAE have no words for.
    """
    method = trained.config.method
    stage = depths(method).index(depth)
    masker, head, target = method.masker, method.head(stage), method.target(stage)
    if not isinstance(masker, RandomDrop):
        found = f"masker {type(masker).__name__}"
    elif not isinstance(target, PixelTarget):
        found = f"target {type(target).__name__}"
    else:
        assert isinstance(head, DecoderConfig)  # no other restores what was dropped
        if head.match_scale is None and head.positions:
            return masker, head, target
        found = f"a decoder with match_scale={head.match_scale} and positions={head.positions}"
    raise ConfigError(
        f"formats mae and hf hold MAE's pieces alone (RandomDrop, a decoder with positions, pixels of every patch); "
        f"{trained.config.recipe} has {found} after block {depth}; --format timm takes its encoder"
    )


def _save(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with _whole(path) as scratch:
        safetensors_writer.write(scratch, weights, metadata=metadata)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with _whole(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, as atomic.replaced does, in a folder that is made if need be.

    Raises:
        ConfigError: path cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replaced(path) as scratch:
            yield scratch
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error})") from error
