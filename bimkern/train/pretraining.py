"""The task of masked image modeling: its network and updates, one step, held-out images, and what it exports."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimkern.arena import Plan
from bimkern.data.batches import Batch, MicroBatches, step_draw_ids
from bimkern.data.pil import PilLoader
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.step_layout import Segment, StepLayout
from bimkern.distributed.ranks import ALONE, Ranks
from bimkern.exporters.own import write_backbones
from bimkern.exporters.trained import Trained
from bimkern.importers.initialize import InitialWeights
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.loss_weights import loss_weights
from bimkern.mim.model import MIM
from bimkern.mim.schedule import LayerGroup, Schedule, resolve
from bimkern.models import attention
from bimkern.train import device as devices
from bimkern.train import network
from bimkern.train.checkpoint.streamed import Streamed
from bimkern.train.config.run import DTYPES, Config, ConfigError
from bimkern.train.graphs import choose as graphs
from bimkern.train.loop.part import WHOLE, NetworkPart
from bimkern.train.memory.allocator import StepMemory
from bimkern.train.optim import adapters
from bimkern.train.optim.batch_norms import FiniteStatistics
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.reporting.held_out import NUM_HELD_OUT, NUM_IMAGES, HeldOutError, HeldOutEvaluation
from bimkern.train.reporting.pictures import KeptPictures
from bimkern.train.run_folder.dataset_manifest import FrozenDataset
from bimkern.train.task import StepResult


class Pretraining:
    """Train the encoder of a config's method, and its heads, on images alone."""

    def __init__(
        self,
        config: Config,
        layout: StepLayout,
        *,
        images: FrozenDataset,
        pictures: Path,
        device: torch.device,
        init: InitialWeights | None = None,
        ranks: Ranks = ALONE,
        part: NetworkPart[MIM] = WHOLE,
    ) -> None:
        """Build the network and its updates, and load the images that it is evaluated on.

        Args:
            config: method, optimizer, schedule and options.
            layout: the steps of the run.
            images: what the run trains on and is evaluated on.
            pictures: folder for them.
            device: where the network is.
            init: the weights that --init names; a checkpoint replaces them.
            ranks: that share every step, as the layout says.
            part: of the network, that this process trains.
        """
        run = config.run
        self._config, self._layout, self._device, self._ranks = config, layout, device, ranks
        self._part, self._flow = part, part.flow(config.method)
        self._steps, self._beside = graphs.choose(run, device), devices.target_stream(run, device)
        self._num_images = len(images.images)
        with torch.random.fork_rng(devices=()):  # a program that calls this keeps its own stream of random numbers
            torch.default_generator.manual_seed(run.seed)
            build = partial(network.build, config)
            self.model = part.built(build) if init is None else build()  # all of --init is in memory anyway
        if init is not None:
            self.model.load_state_dict(init.tensors, strict=False)  # the rest stays random, as the report says
        self._init = None if init is None else init.sha256
        dtype = DTYPES[run.precision]
        attention_fn = attention.choose(run.attention, device, dtype, deterministic=run.deterministic)
        network.set_compute(self.model, dtype, attention_fn)
        part.keep(self.model, device)
        self._statistics = FiniteStatistics(self.model)
        options: dict[str, Any] = {"device": device, "fp16": run.precision == "fp16", "ranks": ranks}
        options |= {"make": adapters.choose(run.optimizer, device), "sharded": run.shard != "none"}
        options["layer_groups"] = self.model.layer_groups() if config.schedule.per_group else None
        self.updates = [
            GroupOptimizer(name, group, config.optim, **options)
            for name, group in self._flow.partition(self.model).items()
        ]
        self._teacher = None if self.model.teacher is None else self.model.teacher.sha256
        self._work: tuple[Segment, int] | None = None  # what steps are alike in
        self.pictures, self._holds_out = KeptPictures(pictures, layout.num_steps), images.holds_out
        held_out, draw_ids = self._load_held_out(images)
        self._held_out = HeldOutEvaluation(
            held_out, draw_ids, seed=run.seed, micro_batch=run.images_at_a_time, pictures=self.pictures
        )

    def compile(self) -> None:
        network.compile_layers(self.model)

    def step(self, index: int, batch: Sequence[Batch], memory: StepMemory) -> StepResult:
        """Run optimizer step `index`, from 0; the rate that it returns is that of the last stage.

        The schedule is read in the middle of the step: at its edges the first or the last step would learn nothing.
        """
        run, schedule, depth = self._config.run, self._schedule(index), self._config.method.encoder.depth
        segment, progress = self._layout.at(index), self._layout.progress(index)
        peak = run.peak_lr_of(segment.batch_size)

        def rate(group: LayerGroup) -> float:
            return peak * schedule.factor(progress, group.number, depth, head=group.head)

        frozen_groups = schedule.frozen_groups(progress, depth)
        work, before = (segment, frozen_groups), self._work
        self._work = work
        for update in self.updates:  # before anything that may run out of memory
            update.set_rates(rate)
            if work != before:
                update.renew()
        options: dict[str, Any] = {"slices": run.slices, "frozen_groups": frozen_groups, "beside": self._beside}
        options |= self._shared(index)
        with self._steps.stream(), self._statistics.kept():
            given = []
            for part in batch:
                images = self._on_device(part.images)
                given.append(MicroBatch(images, self.model.views(images, part.draw_ids, run.seed)))
            batches, prepared = self._steps.prepare(given, memory, work)
            losses = self._flow.step(self.model, batches, self.updates, StepOptions(**options, **prepared))
        return StepResult(losses, self._num_frozen(index), rate(LayerGroup(depth)))

    def _shared(self, index: int) -> dict[str, Any]:
        """Return what a flow must know of a step of which this process has a part."""
        if self._ranks.size == 1:
            return {}
        seed, size = self._config.run.seed, self._layout.at(index).image_size
        ids = step_draw_ids(self._layout, index, self._num_images, seed).to(self._device, non_blocking=True)
        weights = loss_weights(self.model, ids, size, seed)
        return {"denominators": weights, "ready": self._ready, "ahead": lambda number: self.updates[number].ahead()}

    def _ready(self, number: int) -> None:
        """Finish an update; what ranks exchange after the next one travels while this one's parameters are used."""
        self.updates[number].finish()
        for update in self.updates[number + 1 : number + 2]:
            update.prepare()

    def conditions(self, index: int) -> dict[str, int | str]:
        return {"frozen_stages": self._num_frozen(index), "image_size": self._layout.at(index).image_size.saved}

    def identity(self) -> dict[str, Any]:
        return {"teacher": self._teacher, "init": self._init}

    def refuse_other(self, identity: dict[str, Any], checkpoint: str) -> None:
        if identity.get("teacher") != self._teacher:
            raise ConfigError(
                f"{checkpoint} was trained with another teacher than --teacher {self._config.run.teacher} holds now; "
                f"choose another --out"
            )
        begun = identity.get("init")
        if self._init is not None and begun != self._init:
            how = "at random" if begun is None else f"from other weights than --init {self._config.run.init} holds now"
            remedy = "leave --init out to resume, or choose another --out"
            raise ConfigError(f"{checkpoint} was initialized {how}; {remedy}")
        self._init = begun  # --init may be left out: the checkpoint has the weights

    def snapshot(self, done: int, records: list[dict[str, Any]], plan: Plan | None) -> Callable[[], Path | None]:
        return self._held_out.snapshot(self._part.everywhere(self.model), done, records, self._config.recipe, plan)

    def complete(self) -> None:
        """Have the whole network in this process, after the last step; nothing is trained any more."""
        self.updates.clear()
        self._part.complete(self.model)

    def export(self, folder: Path) -> None:
        """Write the encoder up to each head, as it is after the last step."""
        write_backbones(folder, Trained(self._config, self._layout.num_steps, self.model.state_dict()))

    def state(self) -> dict[str, Tensor | Streamed]:
        return self._part.state(self.model)

    def load_state(self, tensors: Mapping[str, Tensor | Streamed]) -> None:
        self._part.load_state(self.model, tensors)
        self._steps.forget()

    def is_evaluated(self, done: int) -> bool:
        """Return whether images are held out, and a checkpoint is due."""
        due = done == self._layout.num_steps or done % self._config.run.save_every == 0
        return self._holds_out and due

    def held_out_record(self) -> dict[str, Any]:
        return {"held_out_loss_per_stage": self._held_out.losses(self._part.everywhere(self.model))}

    def evaluate(self) -> list[HeldOutError]:
        """Compare what every stage predicts of held-out images with the truth."""
        return self._held_out.errors(self.model)

    def _num_frozen(self, index: int) -> int:
        """Return how many stages, from the first on, do not learn in a step."""
        depth = self._config.method.encoder.depth
        groups = self._schedule(index).frozen_groups(self._layout.progress(index), depth)
        return sum(self.model.is_frozen(stage, groups) for stage in range(self.model.num_stages))

    def _schedule(self, index: int) -> Schedule:
        """Return the schedule of a step, whose batch decides the peak, in shares of the run and factors."""
        peak = self._config.run.peak_lr_of(self._layout.at(index).batch_size)
        return resolve(self._config.schedule, self._layout.num_images() / self._num_images, peak)

    def _load_held_out(self, images: FrozenDataset) -> tuple[Tensor, Tensor]:
        """Return images and draw ids to evaluate on: of another seed, for where they are also trained on."""
        limit = NUM_HELD_OUT if images.holds_out else NUM_IMAGES
        count = min(limit, 4 * len(images.held_out))
        size = self._config.method.encoder.image_size
        layout = StepLayout.uniform(image_size=size, batch_size=count, micro_batch=count)
        run = self._config.run
        data = MicroBatches(
            images=images.held_out,
            augment=self._config.augment,
            seed=run.seed + 1,
            layout=layout,
            jpeg_draft=run.jpeg_draft,
        )
        ((batch,),) = ResilientLoader(PilLoader(workers=0), data, images.add_held_out_faults).steps(0, 1)
        return self._on_device(batch.images), batch.draw_ids

    def _on_device(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True)
