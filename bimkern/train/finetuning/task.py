"""The task of fine-tuning: a classifier on a pre-trained encoder learns from labels, layer by layer at other rates.

Shapes: B images, C channels, H W pixels, K classes, N images of the run.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.arena import Plan
from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.global_generators import lent_generators
from bimkern.data.images import Images
from bimkern.data.labels import Labels
from bimkern.data.loader import Loader
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.step_layout import StepLayout
from bimkern.distributed.ranks import ALONE, Ranks
from bimkern.exporters.classifier import write_classifier
from bimkern.files.best_effort import BestEffort
from bimkern.importers.initialize import InitialWeights
from bimkern.mim.schedule import resolve
from bimkern.models import attention
from bimkern.models.classifier import Classifier
from bimkern.models.drop_path import draw_paths
from bimkern.models.layers import set_attention, set_compute_dtype
from bimkern.rng import Stream
from bimkern.train import network
from bimkern.train.checkpoint.streamed import Streamed, read
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.run import DTYPES, ConfigError
from bimkern.train.loop.part import WHOLE, NetworkPart
from bimkern.train.memory.allocator import StepMemory
from bimkern.train.optim import adapters
from bimkern.train.optim.batch_norms import FiniteStatistics
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.optim.layer_decay import decayed, layer_groups
from bimkern.train.reporting import classified, plots
from bimkern.train.reporting.classified import Classified
from bimkern.train.reporting.pictures import KeptPictures
from bimkern.train.run_folder.dataset_manifest import FrozenDataset
from bimkern.train.task import StepResult

logger = logging.getLogger("bimkern.train")

_FIRST_WEIGHTS = 0.1  # share of the average that may be theirs
_AVERAGE = "ema."  # before the names of averaged weights in a checkpoint


class Finetuning:
    """Train a classifier, encoder and all, on labeled images."""

    def __init__(
        self,
        config: FinetuneConfig,
        layout: StepLayout,
        *,
        images: FrozenDataset,
        labels: Labels,
        held_out_labels: Labels,
        loader: Loader,
        pictures: Path,
        device: torch.device,
        init: InitialWeights | None = None,
        ranks: Ranks = ALONE,
        part: NetworkPart[Classifier] = WHOLE,
    ) -> None:
        """Build the network and its updates.

        Args:
            config: a resolved config.
            layout: the steps of the run.
            images: what the run trains on and is evaluated on.
            labels: of what it trains on.
            held_out_labels: of what it is evaluated on.
            loader: decodes what is evaluated on.
            pictures: folder for them.
            device: where the network is.
            init: the weights of the encoder; None: random ones. A checkpoint replaces them.
            ranks: that share every step, as the layout says.
            part: of the network, that this process trains.
        """
        run = config.run
        self._config, self._layout, self._device, self._images = config, layout, device, images
        self._loader, self.classes = loader, labels.classes
        self._labels = torch.from_numpy(labels.of(images.images.files))  # [N], by sample id; likewise
        self._held_out_labels = torch.from_numpy(held_out_labels.of(images.held_out.files))
        with torch.random.fork_rng(devices=()):  # a program that calls this keeps its own stream of random numbers
            torch.default_generator.manual_seed(run.seed)
            self.model = network.build_classifier(config)
        if init is not None:
            self.model.load_state_dict(init.tensors, strict=False)  # the rest stays random, as the report says
        self.model.train_positions()
        self._identity = {
            "backbone": None if init is None else init.sha256,
            "labels": _digest(labels, images.images),
        }
        if ranks.rank == 0:
            _warn(config, layout)
        dtype = DTYPES[run.precision]
        set_compute_dtype(self.model, dtype)
        set_attention(self.model, attention.choose(run.attention, device, dtype, deterministic=run.deterministic))
        self._part, self._drops = part, network.dropping(self.model) is not None
        part.keep(self.model, device)
        self._statistics = FiniteStatistics(self.model)
        self._average = None if config.ema is None else copy.deepcopy(self.model).requires_grad_(False)
        self._is_behind = False  # whether the average has yet to follow the last update
        self._ranks = ranks
        self._depth = self.model.encoder.config.depth
        make = adapters.choose(run.optimizer, device)
        parameters = list(self.model.named_parameters())
        options: dict[str, Any] = {"device": device, "fp16": run.precision == "fp16", "make": make, "ranks": ranks}
        options["sharded"] = run.shard != "none"
        options["layer_groups"] = layer_groups(self.model, self.model.encoder)
        self.updates = [GroupOptimizer("the network", parameters, config.optim, **options)]
        self.pictures, self._writing = KeptPictures(pictures, layout.num_steps, "confusion"), BestEffort(f"{pictures}")
        self._done = 0  # steps
        self._evaluated: tuple[int, Classified] | None = None  # the last time, after so many steps
        self._drawn: int | None = None  # the steps before the evaluation that is drawn

    def compile(self) -> None:
        network.compile_each([self.model.encoder])

    def step(self, index: int, batch: Sequence[Batch], memory: StepMemory) -> StepResult:
        """Run optimizer step `index`, from 0; the rate that it returns is that of the last layer."""
        segment, progress = self._layout.at(index), self._layout.progress(index)
        peak = self._config.run.peak_lr_of(segment.batch_size)
        epochs = self._layout.num_images() / len(self._images.images)
        top = peak * resolve(self._config.schedule, epochs, peak).factor(progress)
        (update,) = self.updates
        update.finish()  # of the step before, whose gradients traveled between ranks meanwhile
        self._follow()
        update.set_rates(lambda group: top * decayed(self._config.layer_decay, group, self._depth))
        loss = torch.zeros(1, device=self._device)
        scope = memory.scope(segment)
        with self._statistics.kept():
            for i, part in enumerate(batch):
                number = (self._layout.index(index) + i) * segment.num_ranks + segment.rank
                images, targets = self._mixed(part, number)
                draw_paths(self.model.encoder, part.draw_ids, self._config.run.seed, self._device)
                with scope(f"micro-batch {i + 1}"):
                    with self._seeded(number):
                        error = self.model.loss(images, targets, segment.batch_size)
                    if i == len(batch) - 1:
                        update.ahead()
                    update.scale(error).backward()
                    loss += error.detach()
                    del error
        with scope("update"):
            update.apply()
        self._done = index + 1
        self._is_behind = self._average is not None
        if self._ranks.size == 1:
            self._follow()
        return StepResult(loss, 0, top)

    def conditions(self, index: int) -> dict[str, int | str]:
        return {"image_size": self._layout.at(index).image_size.saved}

    def identity(self) -> dict[str, Any]:
        return self._identity

    def refuse_other(self, identity: dict[str, Any], checkpoint: str) -> None:
        run = self._config.run
        if identity.get("labels") != self._identity["labels"]:
            raise ConfigError(f"{checkpoint} was trained with other labels than --data has now; choose another --out")
        if identity.get("backbone") != self._identity["backbone"]:
            raise ConfigError(
                f"{checkpoint} began with other weights than --backbone {run.backbone} holds now; choose another --out"
            )

    def state(self) -> dict[str, Tensor | Streamed]:
        self._follow()
        state = self._part.state(self.model)
        if self._average is not None:
            state |= {f"{_AVERAGE}{name}": tensor for name, tensor in self._average.state_dict().items()}
        return state

    def load_state(self, tensors: Mapping[str, Tensor | Streamed]) -> None:
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_AVERAGE)}
        self._part.load_state(self.model, own)
        self._is_behind, self._evaluated, self._drawn = False, None, None
        if self._average is not None:
            self._average.load_state_dict({name: read(tensors[f"{_AVERAGE}{name}"]) for name in own})

    def is_evaluated(self, done: int) -> bool:
        """Return whether an interval between evaluations ends with a step, or the run does."""
        images = self._config.run.eval_every * len(self._images.images)
        now, before = (int(self._layout.image(step) / images) for step in (done, done - 1))
        return now > before or done == self._layout.num_steps

    def held_out_record(self) -> dict[str, Any]:
        return self.evaluate().record()

    def evaluate(self) -> Classified:
        """Classify all held-out images with the averaged weights or, without an average, those that are trained."""
        self._follow()
        images, config = self._images.held_out, self._config
        batch_size = min(config.run.images_at_a_time, len(images))
        layout = StepLayout.one_epoch(image_size=config.image_size, batch_size=batch_size, num_images=len(images))
        options: dict[str, Any] = {"seed": config.run.seed, "layout": layout, "jpeg_draft": config.run.jpeg_draft}
        data = MicroBatches(images=images, augment=config.crop, **options)
        loader = ResilientLoader(self._loader, data, self._images.add_held_out_faults)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for (part,) in loader.steps(0, layout.num_steps):
                yield self._on_device(part.images), self._held_out_labels[part.sample_ids]

        found = classified.classify(self.trained, batches(), len(self.classes))
        self._evaluated = self._done, found
        return found

    def snapshot(self, done: int, records: list[dict[str, Any]], plan: Plan | None) -> Callable[[], Path | None]:
        """Return what draws the curves and, once, the last evaluation, of which there is none before the first."""
        if self._evaluated is None and done == self._layout.num_steps:
            self._done = done
            self.evaluate()
        evaluated = self._evaluated

        def draw() -> Path | None:
            folder, kept = self.pictures.folder, None
            with self._writing.attempt():
                if evaluated is not None and evaluated[0] != self._drawn:
                    step, found = evaluated
                    title = f"{self._config.recipe}, step {step}"
                    classified.draw_confusion(self.pictures.newest, found, self.classes, title)
                    classified.draw_errors(folder / "errors.png", found.errors, self.classes, f"{title}: errors")
                    kept = self.pictures.keep(done)
                    self._drawn = step
                if records:
                    classified.draw_training(folder / "curves.png", records)
                    plots.draw_memory(folder / "memory.png", records, plan)
            return kept

        return draw

    def complete(self) -> None:
        """Have the whole network in this process, after the last step; nothing is trained any more."""
        self._follow()
        self.updates.clear()
        self._part.complete(self.model)

    def export(self, folder: Path) -> None:
        """Write the classifier as it is after the last step."""
        write_classifier(folder, self._config, self.trained, self.classes, self._layout.num_steps)

    @property
    def trained(self) -> Classifier:
        """The network that is evaluated and exported."""
        return self.model if self._average is None else self._average

    @contextmanager
    def _seeded(self, number: int) -> Iterator[None]:
        """Let layers that drop at random on their own draw the same for a micro-batch whenever the run comes to it."""
        if not self._drops:
            yield
            return
        with lent_generators(Stream.DROPOUT, self._config.run.seed, self._device) as reseed:
            reseed(number)
            yield

    def _mixed(self, part: Batch, number: int) -> tuple[Tensor, Tensor]:
        """Return what a micro-batch of the run is trained on: images, and labels [B] or targets [B, K]."""
        config, seed = self._config, self._config.run.seed
        images, labels = self._on_device(part.images), self._on_device(self._labels[part.sample_ids])
        if config.augment.erase_prob or config.mixing is not None:
            images = self.model.normalized(images)
        if config.augment.erase_prob:
            images = config.augment.erase(images, part.draw_ids, seed=seed)
        if config.mixing is None:
            return images, labels
        return config.mixing.mix(images, labels, len(self.classes), seed=seed, step=number)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights toward those that are trained, once for every update that is finished."""
        if self._average is None or not self._is_behind:
            return
        self._is_behind = False
        assert self._config.ema is not None
        average, mine = ([tensor.data for tensor in model.parameters()] for model in (self._average, self.model))
        torch._foreach_lerp_(average, mine, 1 - self._config.ema)
        for own, other in zip(self.model.buffers(), self._average.buffers(), strict=True):
            other.copy_(own)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


def _warn(config: FinetuneConfig, layout: StepLayout) -> None:
    """Say what does not do in so many steps, of so many images at a time, what it is chosen for."""
    if config.mixing is not None and config.mixing.mixes and layout.segments[0].micro_batch == 1:
        logger.warning(
            "mixup and CutMix change nothing: they mix images that go through the network together, and only one does "
            "at a time; choose a larger --micro-batch or --batch-size"
        )
    kept = 0.0 if config.ema is None else config.ema**layout.num_steps
    if kept > _FIRST_WEIGHTS:
        logger.warning(
            "--ema %g: at the end, the average is %.0f %% what the weights were before the first of %d steps; choose a "
            "smaller one",
            config.ema,
            100 * kept,
            layout.num_steps,
        )


def _digest(labels: Labels, images: Images) -> str:
    named = [labels.classes, labels.of(images.files).tolist()]  # of the files, checkpoints have a digest
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()
