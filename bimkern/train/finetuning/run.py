"""A whole fine-tuning run: from a config and a backbone to a classifier, pictures and metrics in its folder."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bimkern import optional
from bimkern.data.digits import digit_images
from bimkern.data.formats import CONVERTED, pil_settings_kept
from bimkern.data.labels import Labels, labeled_images, read_labels
from bimkern.data.loader import Loader
from bimkern.data.source import Source, title
from bimkern.data.step_layout import StepLayout
from bimkern.distributed.agree import agreed
from bimkern.distributed.ranks import Ranks
from bimkern.exporters.classifier import names_in_timm
from bimkern.files import jsonl
from bimkern.files.atomic import write_json
from bimkern.importers.backbone import read_pretrained
from bimkern.importers.initialize import InitialWeights
from bimkern.models.classifier import Classifier
from bimkern.output import say
from bimkern.train import training
from bimkern.train.callbacks import NO_CALLBACKS, Callbacks
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.passes import check_passes
from bimkern.train.config.run import ConfigError, resolve_device
from bimkern.train.finetuning.task import Finetuning
from bimkern.train.loop.shared import shared
from bimkern.train.memory.budget import check_memory
from bimkern.train.memory.shares import spared_bytes
from bimkern.train.reporting import metrics
from bimkern.train.reporting.classified import Classified
from bimkern.train.reporting.summary import describe_finetuning, describe_rates
from bimkern.train.run_folder.dataset_manifest import FrozenDataset
from bimkern.train.run_folder.folder import RunFolder

__all__ = ["Finetuned", "describe", "finetune"]

logger = logging.getLogger("bimkern.train")


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning run ended with."""

    config: FinetuneConfig  # with its encoder, and the micro-batch that it ended with
    folder: RunFolder
    classes: tuple[str, ...]
    held_out: Classified
    model: Classifier  # as it is evaluated and exported, in evaluation mode, on the device of the run

    @property
    def for_timm(self) -> bool:
        """Whether the classifier is exported in timm's layout."""
        return names_in_timm(self.model) is not None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl: of the first step, every log_every-th, those with an evaluation, the last."""
        return jsonl.read(self.folder.path / metrics.FILE)


@pil_settings_kept()
def finetune(config: FinetuneConfig, callbacks: Callbacks = NO_CALLBACKS) -> Finetuned:
    """Train a classifier on a pre-trained encoder, from the last checkpoint in its run folder or from the start.

    The run folder is `config.run.out`, or runs/finetuned-RECIPE. It is written, resumed and ended as by
    bimkern.train.run.run.

    Args:
        config: the run; its backbone is read first, and says what the config leaves open.
        callbacks: what is called while it trains; none of it changes what is trained.

    Raises:
        ConfigError, SourceError, LoaderError, CheckpointError, BackendError: what the config asks for cannot be done.
        Stopped: SIGINT or SIGTERM ended it; the same config resumes it. Signals are handled in the main thread alone.
        Diverged, Starved, OutOfMemory: it cannot continue.
    """
    with training.connected_ranks(config) as ranks:
        with ranks.patient(), agreed(ranks):
            config, init, inputs, labels = _begin(config)
        with agreed(ranks):
            if config.run.shard == "full":
                check_passes(config, ranks.size)
        training.check_ranks(config, ranks)
        with ranks.patient(), agreed(ranks):
            spares = partial(spared_bytes, config, ranks.size)
            check_memory(config, resolve_device(config.run.device), ranks.size, spares=spares)
        with training.opened_folder(config, inputs, ranks) as folder:
            return _finetune(config, callbacks, init, inputs, labels, folder, ranks)


def _finetune(
    config: FinetuneConfig,
    callbacks: Callbacks,
    init: InitialWeights | None,
    inputs: training.Inputs,
    all_labels: tuple[Labels, Labels],
    folder: RunFolder,
    ranks: Ranks,
) -> Finetuned:
    labels, held_out_labels = all_labels
    sharing, known = shared(config, ranks)

    def make_task(
        config: FinetuneConfig, layout: StepLayout, images: FrozenDataset, loader: Loader, device: torch.device
    ) -> Finetuning:
        read: dict[str, Any] = {"images": images, "labels": labels, "held_out_labels": held_out_labels}
        made: dict[str, Any] = {"loader": loader, "pictures": folder.pictures, "device": device, "init": init}
        return Finetuning(config, layout, **read, **made, **known)

    images = training.check_images(config, inputs, folder, ranks)
    say(describe_finetuning(config, images, training.describe_loader(config, inputs, images)))
    if not folder.has_checkpoint and init is not None:
        write_json(folder.init_report, dict(init.report))
        say(f"{init.summary}; see {folder.init_report}")
        assert config.mean is not None
        assert config.std is not None  # the backbone says both, or the config does
        if note := init.note(config.mean, config.std):
            logger.warning("--backbone %s; mean and std of the config set others", note)
    config, task = training.train(config, images, inputs.loader, folder, make_task, callbacks, sharing)
    task.complete()
    if ranks.rank == 0:
        task.export(folder.exported)
    return Finetuned(config, folder, labels.classes, task.evaluate(), task.trained.eval())


def describe(config: FinetuneConfig) -> str:
    """Describe a run in full: its config as JSON, then images, steps, learning rates and the weights it begins with.

    Raises:
        ConfigError, SourceError, LoaderError: what the config asks for cannot be done.
    """
    config, init, inputs, _ = _begin(config)
    lines = [describe_rates(config, inputs.listing, inputs.held_out)]
    lines.append(f"loader         {inputs.loader_choice}")
    return "\n".join([*lines, "random weights" if init is None else init.summary])


def _begin(
    config: FinetuneConfig,
) -> tuple[FinetuneConfig, InitialWeights | None, training.Inputs, tuple[Labels, Labels]]:
    """Read the backbone of a run, list its images and read their labels.

    Returns:
        The resolved config; the weights that the run begins with, None for random ones; the images; the labels of those
        to train on, and of those held out.
    """
    config, weights = read_pretrained(config)
    config = replace(config, run=replace(config.run, out=config.run.out or Path("runs") / f"finetuned-{config.recipe}"))
    inputs = training.find_inputs(config, find_labeled(config))
    if inputs.held_out is None and not config.run.held_out:
        raise ConfigError(
            f"{title(inputs.listing.source)} has no val beside train to evaluate on; name one with --val, or keep a "
            f"share out with --held-out 0.1"
        )
    if config.mixing is not None or config.augment.erase_prob:
        optional.load_timm("mixup, CutMix, label smoothing and random erasing need timm")  # now, not in the first step
    labels = _read_labels(inputs)
    count = len(labels[0].classes)
    if config.num_classes not in (None, count):
        raise ConfigError(f"num_classes must be {count}, as the labels name so many classes, got {config.num_classes}")
    config = replace(config, num_classes=count)
    return config, None if config.run.from_scratch else weights, inputs, labels


def find_labeled(config: FinetuneConfig) -> Source:
    """Return the source of a run's images: that of its options, else that of its config, else the digits.

    Raises:
        ConfigError, SourceError: it cannot be used.
    """
    data, val = config.run.data, config.run.val
    if data is None and config.source is None and config.channels not in CONVERTED:
        raise ConfigError(f"the digits have 1 channel and the encoder takes {config.channels}; give --data")
    if data is not None:
        source = labeled_images(data)
    else:
        source = config.source or digit_images()
    if val is None:
        return source
    held_out: Any = {"held_out": labeled_images(val)}
    return replace(source, **held_out)  # type: ignore[type-var]  # a source is a frozen dataclass


def _read_labels(inputs: training.Inputs) -> tuple[Labels, Labels]:
    """Return the labels of the images to train on, which say what classes there are, and of those held out."""
    labels = read_labels(inputs.listing.source, inputs.listing.files)
    if inputs.held_out is None:
        return labels, labels
    return labels, read_labels(inputs.held_out.source, inputs.held_out.files, labels.classes)
