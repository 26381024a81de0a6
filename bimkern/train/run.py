"""A whole run: from a config to trained weights, pictures and metrics in its folder."""

import gc
import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import bimkern.train.reporting.loggers.builtin  # noqa: F401  # registers our loggers, which --log names
from bimkern.data.check import check
from bimkern.data.dali import DaliLoader
from bimkern.data.demo import demo_images
from bimkern.data.formats import CONVERTED, allow_pixels, pil_settings_kept
from bimkern.data.loader import Loader, choose_loader
from bimkern.data.source import ImageFolder, Listing, Source, list_images
from bimkern.files import jsonl
from bimkern.files.atomic import write_json
from bimkern.importers.initialize import InitialWeights, read_initial_weights
from bimkern.mim.model import MIM
from bimkern.models import attention
from bimkern.output import say
from bimkern.train import device as devices
from bimkern.train.callbacks import NO_CALLBACKS, Callbacks
from bimkern.train.config.run import DTYPES, Config, ConfigError, resolve_device
from bimkern.train.memory import allocator
from bimkern.train.memory.budget import OutOfMemory, check_memory, halve_micro_batch
from bimkern.train.optim import adapters
from bimkern.train.pretraining import Pretraining
from bimkern.train.reporting import metrics
from bimkern.train.reporting.held_out import HeldOutError
from bimkern.train.reporting.loggers import logger as loggers
from bimkern.train.reporting.progress import checking
from bimkern.train.reporting.summary import describe_briefly
from bimkern.train.run_folder.dataset_manifest import FrozenDataset, freeze_dataset
from bimkern.train.run_folder.folder import RunFolder
from bimkern.train.trainer import Trainer

__all__ = ["Outcome", "run"]

logger = logging.getLogger("bimkern.train")


@dataclass(frozen=True)
class Inputs:
    """What a run starts from: the files that it may train on, and the loader that its options name."""

    listing: Listing
    held_out: Listing | None  # None: other crops of the same images
    loader: Loader
    loader_choice: str  # in words: which loader, and why

    @property
    def listings(self) -> list[Listing]:
        return [self.listing] if self.held_out is None else [self.listing, self.held_out]


@dataclass(frozen=True)
class Outcome:
    """What a run ended with."""

    config: Config  # with the micro-batch that it ended with
    folder: RunFolder
    held_out: list[HeldOutError]  # of every stage
    model: MIM  # encoder and heads as they were trained, in evaluation mode, on the device of the run

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl: of the first step, every log_every-th, and the last."""
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
    inputs = find_inputs(config)
    check_memory(config, resolve_device(config.run.device))
    init = None if config.run.init is None else read_initial_weights(config, config.run.init)
    folder = _open_folder(config, inputs)
    with closing(folder):
        images = _check_images(config, inputs, folder)
        say(describe_briefly(config, images, _loader_choice(inputs, images)))
        _begin_from(init, folder)
        train = partial(_train, folder=folder, init=init, callbacks=callbacks)
        return _train_within_memory(config, images, inputs.loader, train)


def find_inputs(config: Config) -> Inputs:
    """List the images that a config names, and make sure that all else that its options name can be used here.

    Raises:
        ConfigError, SourceError, LoaderError: something cannot.
    """
    _refuse_other_processes()
    allow_pixels(config.run.max_pixels)
    source = find_source(config)
    channels = config.method.encoder.channels
    held_out = None if source.held_out is None else list_images(source.held_out, channels)
    if config.run.held_out and held_out is not None:
        raise ConfigError(f"--held-out {config.run.held_out:g}: the data holds out images of its own; leave it out")
    return Inputs(list_images(source, channels), held_out, *_choose(config))


def find_source(config: Config) -> Source:
    """Return the source of a run's images: the folders of its options, else that of its config, else the demo's.

    Raises:
        ConfigError, SourceError: it cannot be used.
    """
    data = config.run.data
    if data is None and config.source is None and (channels := config.method.encoder.channels) not in CONVERTED:
        raise ConfigError(f"the demo photographs have 3 channels and the encoder takes {channels}; give --data")
    if data is None:
        return config.source or demo_images()
    paths = (data,) if isinstance(data, Path) else data
    if not paths or Path() in paths:
        raise ConfigError("--data is empty or the current folder; name the folder of images")
    return ImageFolder(paths=paths)


def _begin_from(init: InitialWeights | None, folder: RunFolder) -> None:
    """Report what becomes of the weights that --init names, unless the run resumes from a checkpoint.

    Raises:
        ConfigError: the run began from weights, is without a checkpoint, and none are named now.
    """
    if folder.has_checkpoint:
        return
    if init is not None:
        write_json(folder.init_report, dict(init.report))
        say(f"{init.summary}; see {folder.init_report}")
    elif folder.init_report.exists():
        raise ConfigError(f"--out {folder.path} began with --init and has no checkpoint yet; name it again")


def _train_within_memory(
    config: Config, images: FrozenDataset, loader: Loader, train: Callable[[Config, FrozenDataset, Loader], Outcome]
) -> Outcome:
    """Train; where memory runs out, again from the last checkpoint or the start, with half the micro-batch."""
    while True:
        try:
            return train(config, images, loader)
        except OutOfMemory as error:
            config = replace(config, run=halve_micro_batch(config.run))
            logger.warning("%s; continuing with --micro-batch %d, the batch stays", error, config.run.micro_batch)
        gc.collect()  # the trainer and what its error held are gone only now
        loader, _ = _choose(config)
        images = images.without_quarantined()


def _train(
    config: Config,
    images: FrozenDataset,
    loader: Loader,
    *,
    folder: RunFolder,
    init: InitialWeights | None,
    callbacks: Callbacks,
) -> Outcome:
    device = devices.claim(config.run.device)
    layout = config.step_layout(len(images.images))
    task = Pretraining(config, layout, images=images, pictures=folder.pictures, device=device, init=init)
    parts: dict[str, Any] = {"images": images, "loader": loader, "folder": folder, "device": device}
    Trainer(config, task, layout, callbacks=callbacks, **parts).train()
    task.export(folder.exported)
    task.model.zero_grad()
    return Outcome(config, folder, task.evaluate(), task.model.eval())


def _refuse_other_processes() -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ConfigError(
            f"WORLD_SIZE={size}: a run is one process so far; start it without torchrun, or with --nproc-per-node 1"
        )


def _choose(config: Config) -> tuple[Loader, str]:
    """Make sure that what the options name can be used here; return the loader and a line about it."""
    options = config.run
    device = resolve_device(options.device)
    allocator.prepare(options.arena, device, compiled=options.compile)  # first: it may replace torch's allocator
    attention.choose(options.attention, device, DTYPES[options.precision], deterministic=options.deterministic)
    adapters.choose(options.optimizer, device)
    loggers.choose(options.log)
    channels = config.method.encoder.channels
    return choose_loader(options.loader, device, options.workers, channels, config.augment)


def _loader_choice(inputs: Inputs, images: FrozenDataset) -> str:
    by_pil = int(images.images.pil_only.sum()) if isinstance(inputs.loader, DaliLoader) else 0
    return inputs.loader_choice + (f"; PIL decodes {by_pil} of the images for it" if by_pil else "")


def _open_folder(config: Config, inputs: Inputs) -> RunFolder:
    folder = RunFolder(config.run.out or Path("runs") / config.recipe)
    for listing in inputs.listings:
        for data in listing.source.paths:
            if folder.path.resolve().is_relative_to(data.resolve()):
                raise ConfigError(f"--out {folder.path} lies inside --data {data}: its pictures would be trained on")
    folder.open(config)
    return folder


def _check_images(config: Config, inputs: Inputs, folder: RunFolder) -> FrozenDataset:
    """Decode every file once, and fix what the run trains on and is evaluated on."""
    workers = len(os.sched_getaffinity(0)) if config.run.workers is None else config.run.workers
    found = []
    for listing in inputs.listings:
        with checking() as progress:
            found.append(check(listing, workers=workers, progress=progress))
    shares = {"max_bad_ratio": config.run.max_bad_ratio, "held_out": config.run.held_out}
    images = freeze_dataset(folder.path, inputs.listing, found[0], begun=folder.begun, **shares)
    return images if inputs.held_out is None else images.hold_out(inputs.held_out, found[1])
