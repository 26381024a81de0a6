"""Exported weights: what other programs take from a run, for every depth at which a head reads the encoder.

A backbone of depth K is the first K blocks of the encoder. Every file says in its header what it holds.
"""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bimkern.mim.masking import RandomDrop
from bimkern.mim.model import Method
from bimkern.mim.targets import PixelTarget
from bimkern.models import layouts
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig
from bimkern.train import checkpoint as checkpoints
from bimkern.train.checkpoint import CheckpointError
from bimkern.train.config import Config, ConfigError, refuse_other
from bimkern.train.run_folder import RunFolder


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

    def metadata(self, depth: int) -> dict[str, str]:
        """Say what an exported file holds, so that a loader can refuse what merely has the right shapes."""
        encoder = self.encoder(depth)
        return {
            "format": "pt",  # readers of safetensors look here for the framework that wrote the tensors
            "recipe": self.config.recipe,
            "step": str(self.step),
            **{name: str(getattr(encoder, name)) for name in ("depth", "width", "num_heads", "patch", "image_size")},
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
        write_timm(folder / f"backbone-depth{depth:02d}.safetensors", trained, depth)


def write_timm(path: Path, trained: Trained, depth: int) -> None:
    """Write a safetensors file for timm's VisionTransformer: the encoder and its last norm, without a classifier."""
    weights = layouts.to_timm(trained.cut(depth), trained.config.method.encoder.grid)
    _save(path, weights, trained.metadata(depth))


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
    config = layouts.hf_config(trained.encoder(depth), head, mask_ratio=ratio, normalize=target.normalize)
    _save(path / "model.safetensors", layouts.to_hf(trained.cut(depth), method.encoder.grid), trained.metadata(depth))
    with _whole(path / "config.json") as scratch:
        scratch.write_text(json.dumps(config, indent=2) + "\n")


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
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, scratch, metadata)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes path at the end: no reader sees half a file."""
    scratch = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written ({error})") from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
