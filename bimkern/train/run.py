"""A whole pre-training run: from a config to trained weights, pictures and metrics in its folder."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bimkern.data.demo import demo_images
from bimkern.data.formats import CONVERTED, pil_settings_kept
from bimkern.data.loader import Loader, default_workers
from bimkern.data.source import Source
from bimkern.data.sources import find
from bimkern.data.step_layout import StepLayout
from bimkern.distributed.agree import agreed
from bimkern.distributed.ranks import Group, Ranks
from bimkern.files import jsonl
from bimkern.files.atomic import write_json
from bimkern.importers.initialize import InitialWeights, read_initial_weights
from bimkern.mim.model import MIM
from bimkern.output import say
from bimkern.train import device as devices
from bimkern.train import training
from bimkern.train.callbacks import NO_CALLBACKS, Callbacks
from bimkern.train.config.normalization import normalized
from bimkern.train.config.passes import check_passes
from bimkern.train.config.run import Config, ConfigError, resolve_device
from bimkern.train.config.stage import StageConfig, check_stages
from bimkern.train.graphs import choose as graphs
from bimkern.train.loop.shared import shared
from bimkern.train.loop.sharing import Sharing
from bimkern.train.memory.budget import check_memory
from bimkern.train.memory.shares import spared_bytes
from bimkern.train.pipeline.sharing import SharedStages
from bimkern.train.pretraining import Pretraining
from bimkern.train.reporting import metrics
from bimkern.train.reporting.held_out import HeldOutError
from bimkern.train.reporting.summary import describe_briefly
from bimkern.train.run_folder.dataset_manifest import FrozenDataset
from bimkern.train.run_folder.folder import RunFolder
from bimkern.train.training import Inputs

__all__ = ["Outcome", "find_inputs", "find_source", "run"]

logger = logging.getLogger("bimkern.train")


@dataclass(frozen=True)
class Outcome:
    """What a run ended with."""

    config: Config  # with the micro-batch that it ended with
    folder: RunFolder
    held_out: list[HeldOutError]  # of every stage
    model: MIM  # encoder and heads as they were trained, in evaluation mode, on the device of the run

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, which rank 0 has: of the first step, every log_every-th, and the last."""
        return jsonl.read(self.folder.path / metrics.FILE)


@pil_settings_kept()
def run(config: Config, callbacks: Callbacks = NO_CALLBACKS) -> Outcome:
    """Train what a config describes, from the last checkpoint in its run folder or from the start, to the end.

    The run folder is `config.run.out`, or runs/RECIPE. Where memory runs out, training continues from the last
    checkpoint with half as many images at a time; the batch stays.

    Args:
        config: the run.
        callbacks: what is called while it trains; none of it changes what is trained.

    Raises:
        ConfigError, SourceError, LoaderError, CheckpointError, BackendError: what the config asks for cannot be done.
        Stopped: SIGINT or SIGTERM ended it; the same config resumes it. Signals are handled in the main thread alone.
        Diverged, Starved, OutOfMemory: it cannot continue.
    """
    with training.connected_ranks(config) as ranks:
        with agreed(ranks):
            if config.run.pipeline:
                check_stages(config, ranks.size)
            if config.run.shard == "full":
                check_passes(config, ranks.size)
        num_shares = 1 if config.run.pipeline else ranks.size
        training.check_ranks(config, ranks, num_shares=num_shares)
        with ranks.patient(), agreed(ranks):
            inputs = find_inputs(config)
            if ranks.rank == 0:
                config = _normalized(config, inputs)
            mine = StageConfig.of(config, ranks.rank) if config.run.pipeline else config
            device = resolve_device(config.run.device)
            check_memory(mine, device, num_shares, spares=lambda: spared_bytes(mine, num_shares))
            init = None if config.run.init is None else read_initial_weights(config, config.run.init)
        config = _shared_normalization(config, ranks)
        with training.opened_folder(config, inputs, ranks) as folder:
            return _run(config, callbacks, inputs, init, folder, ranks)


def _run(
    config: Config,
    callbacks: Callbacks,
    inputs: Inputs,
    init: InitialWeights | None,
    folder: RunFolder,
    ranks: Ranks,
) -> Outcome:
    sharing, known = _shared(config, ranks)

    def make_task(
        config: Config, layout: StepLayout, images: FrozenDataset, loader: Loader, device: torch.device
    ) -> Pretraining:
        parts: dict[str, Any] = {"images": images, "pictures": folder.pictures, "init": init}
        return Pretraining(config, layout, device=device, **parts, **known)

    if config.run.normalize == "dataset" and ranks.rank == 0:
        write_json(folder.normalization, {"mean": config.method.mean, "std": config.method.std})
        say(f"normalized by mean {config.method.mean} and std {config.method.std}; see {folder.normalization}")
    images = training.check_images(config, inputs, folder, ranks)
    say(describe_briefly(config, images, training.describe_loader(config, inputs, images)))
    with ranks.patient(), agreed(ranks):
        _begin_from(init, config, folder)
    config, task = training.train(config, images, inputs.loader, folder, make_task, callbacks, sharing)
    task.complete()
    if ranks.rank == 0:
        task.export(folder.exported)
    task.model.zero_grad()
    return Outcome(config, folder, task.evaluate(), task.model.eval())


def _normalized(config: Config, inputs: Inputs) -> Config:
    """Return the config with the mean and std that --normalize asks for."""
    workers = default_workers() if config.run.workers is None else config.run.workers
    return normalized(config, inputs.listing, training.folder_of(config).normalization, workers=workers)


def _shared_normalization(config: Config, ranks: Ranks) -> Config:
    """Return the config with the mean and std of rank 0."""
    mean, std = ranks.broadcast_object([config.method.mean, config.method.std])
    return replace(config, method=replace(config.method, mean=tuple(mean), std=tuple(std)))


def _shared(config: Config, ranks: Ranks) -> tuple[Sharing, dict[str, Any]]:
    """Return how ranks share the work, and what the task must know of it."""
    if not config.run.pipeline or not isinstance(ranks, Group):
        return shared(config, ranks)
    stages = SharedStages(ranks, config.method, resolve_device(config.run.device))
    return stages, {"part": stages}


def find_inputs(config: Config) -> Inputs:
    """List the images that a config names, and make sure that all else that its options name can be used here.

    Raises:
        ConfigError, SourceError, LoaderError: something cannot.
    """
    device = resolve_device(config.run.device)
    graphs.check(config.run, device)
    devices.check_target_stream(config.run, device)
    return training.find_inputs(config, find_source(config))


def find_source(config: Config) -> Source:
    """Return the source of a run's images: what its options name, else that of its config, else the demo's.

    Raises:
        ConfigError, SourceError: it cannot be used.
    """
    data = config.run.data
    if data is None and config.source is None and (channels := config.channels) not in CONVERTED:
        raise ConfigError(f"the demo photographs have 3 channels and the encoder takes {channels}; give --data")
    if data is None:
        return config.source or demo_images()
    paths = (data,) if isinstance(data, Path) else data
    if not paths or Path() in paths:
        raise ConfigError("--data is empty or the current folder; name the folder of images")
    return find.find_source(paths)


def _begin_from(init: InitialWeights | None, config: Config, folder: RunFolder) -> None:
    """Report what becomes of the weights that --init names, unless the run resumes from a checkpoint.

    Raises:
        ConfigError: the run began from weights, is without a checkpoint, and none are named now.
    """
    if folder.has_checkpoint:
        return
    if init is not None:
        write_json(folder.init_report, dict(init.report))
        say(f"{init.summary}; see {folder.init_report}")
        if note := init.note(config.method.mean, config.method.std):
            logger.warning("--init %s; --mean and --std set others", note)
    elif folder.init_report.exists():
        raise ConfigError(f"--out {folder.path} began with --init and has no checkpoint yet; name it again")
