"""What the runs of all tasks share: the images, the loader, the checks, the folder, and what follows out-of-memory."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

import bimkern.train.reporting.loggers.builtin  # noqa: F401  # registers our loggers, which --log names
from bimkern.data.check import check
from bimkern.data.dali import DaliLoader
from bimkern.data.decoded_cache import bytes_of, kept_in_memory
from bimkern.data.file_checks import FileChecks
from bimkern.data.formats import allow_pixels
from bimkern.data.listing import Listing, list_images
from bimkern.data.loader import Loader, choose_loader
from bimkern.data.source import Source
from bimkern.data.step_layout import StepLayout
from bimkern.distributed.agree import agreed
from bimkern.distributed.connect import connected, warned_once
from bimkern.distributed.launch import local_rank, local_world_size
from bimkern.distributed.ranks import Ranks
from bimkern.errors import BimkernError
from bimkern.models import attention
from bimkern.train import device as devices
from bimkern.train.callbacks import Callbacks
from bimkern.train.config.run import DTYPES, ConfigError, TrainingConfig, resolve_device
from bimkern.train.config.serialize import refuse_other, to_json
from bimkern.train.loop.sharing import Sharing
from bimkern.train.memory import allocator
from bimkern.train.memory.budget import OutOfMemory, available_memory, halve_micro_batch
from bimkern.train.optim import adapters
from bimkern.train.reporting.loggers import logger as loggers
from bimkern.train.reporting.progress import checking
from bimkern.train.run_folder.dataset_manifest import FrozenDataset, freeze_dataset
from bimkern.train.run_folder.folder import RunFolder
from bimkern.train.task import Task
from bimkern.train.trainer import Trainer
from bimkern.units import human_bytes

__all__ = [
    "Inputs",
    "check_images",
    "check_ranks",
    "connected_ranks",
    "describe_loader",
    "find_inputs",
    "opened_folder",
    "train",
]

logger = logging.getLogger("bimkern.train")

_CACHE_SHARE = 0.8  # of the available memory: a step, and copies for checkpoints, come on top

C = TypeVar("C", bound=TrainingConfig)
T = TypeVar("T", bound=Task)
MakeTask = Callable[[C, StepLayout, FrozenDataset, Loader, torch.device], T]


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


def find_inputs(config: TrainingConfig, source: Source) -> Inputs:
    """List the images of a source, and make sure that all else that a run's options name can be used here.

    Raises:
        ConfigError, SourceError, LoaderError: something cannot.
    """
    allow_pixels(config.run.max_pixels)
    if config.run.held_out and source.held_out is not None:
        raise ConfigError(f"--held-out {config.run.held_out:g}: the data holds out images of its own; leave it out")
    with warned_once("bimkern.data"):
        held_out = None if source.held_out is None else list_images(source.held_out, config.decoding)
        listing = list_images(source, config.decoding)
    return Inputs(listing, held_out, *_choose(config, source))


def folder_of(config: TrainingConfig) -> RunFolder:
    """Return the folder of a run, which is not opened yet."""
    return RunFolder(config.run.out or Path("runs") / config.recipe)


def connected_ranks(config: TrainingConfig) -> AbstractContextManager[Ranks]:
    """Connect the ranks that train what a config describes.

    Raises:
        RanksError, ConfigError: they cannot be connected, or lack a device.
    """
    return connected(resolve_device(config.run.device).type, config.run.dist_timeout)


def check_ranks(config: TrainingConfig, ranks: Ranks, *, num_shares: int | None = None) -> None:
    """Make sure that ranks can share the steps of a resolved config, and that all have the same.

    Args:
        config: of this rank.
        ranks: of the run.
        num_shares: in which they have the images of a step. Default: one for every rank.

    Raises:
        ConfigError, OtherRank: they cannot, or have not.
    """
    first = ranks.broadcast_object(to_json(config))
    with agreed(ranks):
        fewest = min(phase.segment(config.run.batch_size, 1).batch_size for phase in config.all_phases())
        if (num_shares or ranks.size) > fewest:
            raise ConfigError(
                f"--batch-size {config.run.batch_size}: {ranks.size} ranks cannot share steps of {fewest} images; "
                f"start fewer ranks, or choose a larger batch"
            )
        refuse_other(first, config, "rank 0 runs", "start all ranks with the same command")


@contextmanager
def opened_folder(config: TrainingConfig, inputs: Inputs, ranks: Ranks) -> Iterator[RunFolder]:
    """Open the folder of a run; ranks other than the first have a temporary one, for what is read from it.

    Raises:
        ConfigError, OtherRank: it cannot be used, or lies among the images.
    """
    with ExitStack() as stack:
        folder = folder_of(config)
        if ranks.rank:
            folder = RunFolder(Path(stack.enter_context(TemporaryDirectory(prefix=f"bimkern-rank-{ranks.rank}-"))))
        with ranks.patient(), agreed(ranks):
            for listing in inputs.listings:
                for data in listing.source.paths:
                    if folder.path.resolve().is_relative_to(data.resolve()):
                        raise ConfigError(
                            f"--out {folder.path} lies inside --data {data}: its pictures would be trained on"
                        )
            folder.open(config)
        yield stack.enter_context(closing(folder))


def check_images(config: TrainingConfig, inputs: Inputs, folder: RunFolder, ranks: Ranks) -> FrozenDataset:
    """Decode every file once, and fix what the run trains on and is evaluated on.

    The first rank of every machine decodes; the others find what it found. Rank 0 decides, and every other rank makes
    sure that it has the same images.
    """
    shares: dict[str, Any] = {"max_bad_ratio": config.run.max_bad_ratio, "held_out": config.run.held_out}
    found: list[FileChecks] = []
    for first in (True, False):
        with ranks.patient(), agreed(ranks):
            if first == (local_rank() == 0):
                found = [_check(config, listing) for listing in inputs.listings]
    images: FrozenDataset | None = None
    for first in (True, False):
        with ranks.patient(), agreed(ranks):
            if first == (ranks.rank == 0):
                begun = {"begun": folder.begun or not first, "of_rank_0": not first}
                images = freeze_dataset(folder.path, inputs.listing, found[0], **begun, **shares)
                if inputs.held_out is not None:
                    images = images.hold_out(inputs.held_out, found[1])
        folder.share_images(ranks)
    assert images is not None
    return images if config.run.cache == "none" else _kept_in_memory(config, images, ranks)


def _kept_in_memory(config: TrainingConfig, images: FrozenDataset, ranks: Ranks) -> FrozenDataset:
    """Decode the images, of every rank for itself, if they fit."""
    of_all = images.parts
    with agreed(ranks):
        needed, available = sum(map(bytes_of, of_all)), available_memory(torch.device("cpu"))
        if needed * local_world_size() > _CACHE_SHARE * available:
            each = f" in each of {local_world_size()} ranks" if local_world_size() > 1 else ""
            raise ConfigError(
                f"--cache memory: {sum(map(len, of_all))} images take {human_bytes(needed)} decoded{each}, and "
                f"{_CACHE_SHARE:.0%} of the {human_bytes(available)} that are available may be used; leave it out, or "
                f"shrink the images with python -m bimkern.pack"
            )
    with ranks.patient(), agreed(ranks), checking("decoding", "decoded") as progress:
        kept = [kept_in_memory(one, workers=_workers(config), progress=progress) for one in of_all]
    return replace(images, images=kept[0], held_out=kept[-1])


def _check(config: TrainingConfig, listing: Listing) -> FileChecks:
    with checking() as progress:
        return check(listing, workers=_workers(config), progress=progress)


def _workers(config: TrainingConfig) -> int:
    """Return how many processes decode before the first step."""
    return len(os.sched_getaffinity(0)) if config.run.workers is None else config.run.workers


def describe_loader(config: TrainingConfig, inputs: Inputs, images: FrozenDataset) -> str:
    sizes = {phase.image_size for phase in config.all_phases()}
    by_pil = (
        max(int(images.images.for_pil(size).sum()) for size in sizes) if isinstance(inputs.loader, DaliLoader) else 0
    )
    of_pil = f"; PIL decodes {by_pil} of the images for it" if by_pil else ""
    bytes_kept = sum(bytes_of(part) for part in images.parts if part.kept is not None)
    return inputs.loader_choice + of_pil + (f"; {human_bytes(bytes_kept)} decoded in memory" if bytes_kept else "")


def train(
    config: C,
    images: FrozenDataset,
    loader: Loader,
    folder: RunFolder,
    make_task: MakeTask[C, T],
    callbacks: Callbacks,
    sharing: Sharing,
) -> tuple[C, T]:
    """Train; where memory runs out, again from the last checkpoint or the start, with half the micro-batch.

    Args:
        config: of the run.
        images: what it trains on.
        loader: decodes them.
        folder: of the run.
        make_task: makes the task, for the config, the steps, the images, the loader and the device.
        callbacks: what is called meanwhile.
        sharing: of the work, between ranks.

    Returns:
        The config with the micro-batch that it ended with, and the task as it is after the last step.
    """
    while True:
        try:
            return config, _train_once(config, images, loader, folder, make_task, callbacks, sharing)
        except OutOfMemory as error:
            config = replace(config, run=halve_micro_batch(config.run, sharing.ranks.size))
            logger.warning("%s; continuing with --micro-batch %d, the batch stays", error, config.run.micro_batch)
        gc.collect()  # the trainer and what its error held are gone only now
        loader, _ = _choose(config, images.listing.source)
        images = images.without_quarantined()


def _train_once(
    config: C,
    images: FrozenDataset,
    loader: Loader,
    folder: RunFolder,
    make_task: MakeTask[C, T],
    callbacks: Callbacks,
    sharing: Sharing,
) -> T:
    device = devices.claim(config.run.device)
    layout = sharing.layout(config.step_layout(len(images.images)))
    task = make_task(config, layout, images, loader, device)
    parts: dict[str, Any] = {"images": images, "loader": loader, "folder": folder, "device": device}
    Trainer(config, task, layout, callbacks=callbacks, sharing=sharing, **parts).train()
    return task


def _choose(config: TrainingConfig, source: Source) -> tuple[Loader, str]:
    """Make sure that what the options name can be used here; return the loader of a source and a line about it."""
    options = config.run
    device = resolve_device(options.device)
    allocator.prepare(options.arena, device, compiled=options.compile)  # first: it may replace torch's allocator
    attention.choose(options.attention, device, DTYPES[options.precision], deterministic=options.deterministic)
    adapters.choose(options.optimizer, device)
    loggers.choose(options.log)
    try:
        images = {"kept": options.cache == "memory", "arrays": getattr(source, "holds_arrays", False)}
        return choose_loader(options.loader, device, options.workers, config.channels, config.augment, **images)
    except BimkernError:
        raise
    except ValueError as error:  # an augmentation that does not go with the images
        raise ConfigError(str(error)) from error
