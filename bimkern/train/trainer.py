"""The training loop: it runs any method, and knows none."""

import signal
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.loader import Loader
from bimkern.data.pil import PilLoader
from bimkern.data.resilient_loader import Feed, FeedError
from bimkern.data.source import Images, SourceError
from bimkern.data.step_layout import StepLayout
from bimkern.exporters.own import write_backbones
from bimkern.exporters.trained import Trained
from bimkern.mim.flow import MicroBatch
from bimkern.mim.schedule import LayerGroup
from bimkern.models import attention
from bimkern.models.layers import TransformerLayer
from bimkern.output import say
from bimkern.train import device as devices
from bimkern.train import network
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.async_saver import Saver
from bimkern.train.checkpoint.store import Checkpoint, CheckpointError
from bimkern.train.config.run import DTYPES, Config, ConfigError
from bimkern.train.config.serialize import refuse_other, to_json
from bimkern.train.memory import allocator
from bimkern.train.memory.budget import OutOfMemory, is_shortage
from bimkern.train.memory.live_bytes import LiveBytes, held_bytes
from bimkern.train.optim import adapters
from bimkern.train.optim.divergence import PATIENCE, Diverged, Divergence
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.reporting import metrics
from bimkern.train.reporting.held_out import NUM_IMAGES, Judge, Outcome
from bimkern.train.reporting.history import History
from bimkern.train.reporting.progress import Reporter
from bimkern.train.reporting.running_mean import RunningMean
from bimkern.train.reporting.supply import Shortage, Supply
from bimkern.train.reporting.throughput import Clock, TimedLoader
from bimkern.train.run_folder.dataset_manifest import RunImages
from bimkern.train.run_folder.folder import RunFolder
from bimkern.train.signals import Stopped, StopSignals
from bimkern.watchdog import Interrupted, stopped_by

__all__ = ["Diverged", "Outcome", "Starved", "Trainer"]


class Starved(RuntimeError):
    """There is nothing more to train on; the message says what is saved."""


class Trainer:
    """A run: model, optimizers and data, built from a config and ready to start or to go on."""

    def __init__(self, config: Config, images: RunImages, loader: Loader, folder: RunFolder) -> None:
        run = config.run
        self.config, self.folder = config, folder
        self.device = devices.claim(run.device)
        torch.manual_seed(run.seed)
        self.model = network.build(config).to(self.device)
        dtype = DTYPES[run.precision]
        attention_fn = attention.choose(run.attention, self.device, dtype, deterministic=run.deterministic)
        network.set_compute(self.model, dtype, attention_fn)
        options: dict[str, Any] = {"device": self.device, "fp16": run.precision == "fp16"}
        options["make"] = adapters.choose(run.optimizer, self.device)
        options["layer_groups"] = self.model.layer_groups() if config.schedule.per_group else None
        self.updates = [
            GroupOptimizer(name, group, config.optim, **options)
            for name, group in config.method.flow.partition(self.model).items()
        ]
        self._teacher = None if self.model.teacher is None else self.model.teacher.sha256
        self.images = images
        self.layout = config.step_layout(len(images.images))
        data = self._micro_batches(images.images, self.layout, run.seed)
        self._edge = devices.StepEdge(self.device)
        self._loader = TimedLoader(loader, self._edge.pending)
        self._shortage = Shortage()
        self.feed = Feed(self._loader, data, images.quarantine.add)
        self._judge = Judge(*self._load_judged(images), run.seed, folder.pictures)
        self._interval_loss = RunningMean()
        self._saver = Saver(folder.checkpoints, every=run.save_every)
        self._divergence = Divergence(self.updates, folder.path, precision=run.precision)
        self._live_activation_bytes: int | None = None
        self._memory = allocator.choose(run.arena, self.device, compiled=run.compile)

    def train(self) -> Outcome:
        """Run from the last checkpoint, or from the start, to the end."""
        done = self._resume()
        self.folder.record(self.config)
        if done < self.layout.num_steps:
            with devices.repeatable_kernels() if self.config.run.deterministic else nullcontext():
                self._train_from(done)
        else:
            # The run may have been killed between its last checkpoint and the pictures.
            self._sketch(done, metrics.read(self.folder.path))()
        write_backbones(self.folder.exported, Trained(self.config, self.layout.num_steps, self.model.state_dict()))
        return self._judge.outcome(self.model)

    def _train_from(self, done: int) -> None:
        if self.config.run.compile:
            _compile_blocks(self.model)
        log = metrics.Metrics(self.folder.path, after_step=done)
        reporter = Reporter(done=done, total=self.layout.num_steps)
        try:
            with StopSignals() as signals, stopped_by(signals.pending), self._saver:
                while done < self.layout.num_steps:
                    done = self._run_from(done, log, reporter, signals)
        except Interrupted as hung:  # a save; a hung loader ends like any step
            raise signals.stopped(f"; {hung}") from hung
        except OutOfMemory as shortage:
            if signals.received is None:
                raise
            raise signals.stopped(f"; {shortage}; nothing is saved since step {self._saver.saved_step}") from shortage
        finally:
            log.close()
            reporter.close()
        if signals.received is not None:  # in or after the last step: all is saved, and what comes may hang
            raise signals.stopped(f" after step {done}, the last")

    def _run_from(self, first: int, log: metrics.Metrics, reporter: Reporter, signals: StopSignals) -> int:
        """Train from step `first` to the end, or until it has to roll back; return the steps that stand.

        Raises:
            Stopped: a signal came, or the end, and then the state could not be saved.
            Diverged: rolling back did not help.
            Starved: nothing more can be loaded.
        """
        loaded = self.feed.steps(first, self.layout.num_steps)
        with closing(loaded):
            return self._run_on(Supply(loaded, self._loader), first, log, reporter, signals)

    def _run_on(
        self, supply: Supply, first: int, log: metrics.Metrics, reporter: Reporter, signals: StopSignals
    ) -> int:
        run = self.config.run
        clock = Clock(self._loader, first)
        for done in range(first + 1, self.layout.num_steps + 1):
            batch = self._next(supply, done - 1, log, signals)
            # The second step of a process, or of an image size, is the first in which only activations are born.
            segment = self.layout.at(done - 1)
            number = done - max(first, segment.first_step)
            if number == 1:
                self._live_activation_bytes = None
            counter = LiveBytes(self.model.parameters()) if number == 2 and not run.compile else None
            with counter or nullcontext():
                losses, lr = self._step_or_shortage(done - 1, batch)
            self._edge.mark()
            if counter is not None:
                self._live_activation_bytes = counter.peak
            if done == first + 1:
                self._saver.reserve(*self._tensors())  # the optimizer's exist from now on
            if done > 1 and self._conditions(done) != self._conditions(done - 1):
                self._interval_loss.clear()
            self._interval_loss.add(losses[self._num_frozen(done) :].sum())
            last = done == self.layout.num_steps
            record = None
            if done == 1 or done % run.log_every == 0 or last:
                record = self._record(done, losses, lr, clock)
                log.log(record)
                self._shortage.note(done, record["data_wait"], record["images_per_s"], supply)
            if (record is not None or done % PATIENCE == 0) and self._divergence.found(done):
                return self._roll_back(done, batch, log)
            reporter.step(done, record)
            if last or signals.received is not None:
                self._end(done, log, signals.received)
            elif done % run.save_every == 0 and self._divergence.is_learning():
                self._save(done, log, required=False)
        return self.layout.num_steps

    def _next(self, supply: Supply, done: int, log: metrics.Metrics, signals: StopSignals) -> list[Batch]:
        try:
            return supply.next()
        except Interrupted:
            self._end(done, log, signals.received)
            raise
        except (FeedError, SourceError) as error:
            saved = f"{done} steps are done and saved"
            try:
                self._save_last(done, log)
            except CheckpointError as unsaved:
                saved = f"{done} steps are done; {unsaved}"
            remedy = "; once they can be read again, or with a larger --max-bad-ratio, "
            when = remedy if isinstance(error, SourceError) else "; "
            raise Starved(f"{error}. {saved}{when}the same command goes on from there") from error

    def _end(self, done: int, log: metrics.Metrics, received: signal.Signals | None) -> None:
        """Save what the run ends with, at its last step or where a signal came.

        Raises:
            Stopped: it came before the last step, or nothing could be saved.
        """
        what = f"stopped by {received.name} after step {done}" if received else f"step {done}, the last, is done"
        exit_code = 128 + received if received else 1
        try:
            self._save_last(done, log)
        except CheckpointError as error:
            raise Stopped(f"{what}; {error}", exit_code=exit_code) from error
        if done < self.layout.num_steps:
            raise Stopped(what, exit_code=exit_code)

    def _save_last(self, done: int, log: metrics.Metrics) -> None:
        """Save after the last step of this process, unless that is saved or was done by another process."""
        self._saver.wait()
        if self._saver.saved_step != done:
            self._save(done, log, required=True)

    def _step_or_shortage(self, index: int, batch: list[Batch]) -> tuple[Tensor, float]:
        """Run a step; without memory for it some of its updates may have been made, so that nobody can go on here.

        Raises:
            OutOfMemory: there was not enough memory.
        """
        try:
            return self.step(index, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
        at_a_time = self.layout.at(index).micro_batch
        raise OutOfMemory(f"step {index + 1}: not enough memory for {at_a_time} images at a time")

    def step(self, index: int, batch: list[Batch]) -> tuple[Tensor, float]:
        """Run optimizer step `index` (from 0); return the stages' losses [S] and the last block's learning rate.

        The schedule is read in the middle of the step: at its edges the first or the last step would learn nothing.
        """
        run, schedule, depth = self.config.run, self.config.schedule, self.config.method.encoder.depth
        progress = self.layout.progress(index)
        peak = run.peak_lr_of(self.layout.at(index).batch_size)

        def rate(group: LayerGroup) -> float:
            return peak * schedule.factor(progress, group.number, depth, head=group.head)

        for update in self.updates:
            update.set_rates(rate)
        batches = []
        for images, ids in map(self._on_device, batch):
            batches.append(MicroBatch(images, self.model.views(images, ids, run.seed)))
        frozen_groups = schedule.frozen_groups(progress, depth)
        losses = self.config.method.flow.step(
            self.model,
            batches,
            self.updates,
            slices=run.slices,
            frozen_groups=frozen_groups,
            scope=self._memory.scope((self.layout.at(index), frozen_groups)),
        )
        return losses, rate(LayerGroup(depth))

    def _num_frozen(self, done: int) -> int:
        """Return how many stages, from the first on, did not learn in the last of `done` steps."""
        depth = self.config.method.encoder.depth
        groups = self.config.schedule.frozen_groups(self.layout.progress(done - 1), depth)
        return sum(self.model.is_frozen(stage, groups) for stage in range(self.model.num_stages))

    def _conditions(self, done: int) -> dict[str, int]:
        """Return what the loss of the last of `done` steps depends on beside the weights."""
        return {"frozen_stages": self._num_frozen(done), "image_size": self.layout.at(done - 1).image_size}

    def _record(self, done: int, losses: Tensor, lr: float, clock: Clock) -> dict[str, Any]:
        frozen = self._num_frozen(done)
        learning = losses[frozen:].tolist()  # waits for the device
        lap = clock.lap(done)
        held, peak = held_bytes(self.device)
        seen, seen_before = (self.layout.image(step) for step in (done, done - lap.steps))
        return {
            "step": done,
            "epoch": seen / len(self.images.images),
            "image_size": self.layout.at(done - 1).image_size,
            "loss": sum(learning),
            "loss_per_block": [None] * frozen + learning,
            "lr": lr,
            "skipped_updates": [int(update.skipped) for update in self.updates],
            "images_per_s": (seen - seen_before) / lap.seconds,
            "data_wait": lap.waited / lap.seconds,
            "images_set_aside": len(self.images.quarantine.files),
            "held_bytes": held,
            "peak_bytes": max(held, peak),
            "live_activation_bytes": self._live_activation_bytes,
            **self._memory.record(),
        }

    def _resume(self) -> int:
        """Take over the newest intact checkpoint; return the optimizer steps done."""
        saved = checkpoints.load_latest(self.folder.checkpoints)
        if saved is None:
            return 0
        what = f"the checkpoint of step {saved.step} in {self.folder.checkpoints}"
        refuse_other(saved.state.get("config"), self.config, f"{what} is of a run", "choose another --out")
        if saved.state.get("images") != self.images.fingerprint:
            raise ConfigError(
                f"{self.folder.path}: its checkpoints were trained on other images than images.jsonl lists; "
                f"choose another --out"
            )
        if saved.state.get("teacher") != self._teacher:
            raise ConfigError(
                f"{what} was trained with another teacher than --teacher {self.config.run.teacher} holds now; "
                f"choose another --out"
            )
        try:
            self._take_over(saved)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{what} does not fit ({' '.join(str(error).split())})") from error
        if saved.step < self.layout.num_steps:
            say(f"resuming {self.folder.path} at step {saved.step} of {self.layout.num_steps}")
        else:
            say(f"{self.folder.path} is finished, {saved.step} steps; choose another --out to train anew")
        return saved.step

    def _take_over(self, saved: Checkpoint) -> None:
        self.model.load_state_dict(saved.model)
        for update, scaler in zip(self.updates, saved.state["scalers"], strict=True):
            update.load_tensors(saved.optimizer)
            update.load_scaler_state(scaler)
            update.skipped.fill_(saved.state["skipped"][update.name])
        self._saver.best, self._saver.saved_step = saved.state["best"], saved.step

    def _roll_back(self, done: int, batch: list[Batch], log: metrics.Metrics) -> int:
        """Return to the last checkpoint."""
        dumped = self._divergence.dump(done, batch)
        self._saver.wait()  # it may be writing the very checkpoint
        step = self._resume()
        self._divergence.returned(done, step, dumped)
        self._interval_loss.clear()
        log.cut_back(step)
        return step

    def _save(self, done: int, log: metrics.Metrics, *, required: bool) -> None:
        """Have a checkpoint written and pictures drawn; where none can be, go on without, unless it is required."""
        loss = self._interval_loss.take()
        state = {
            "scalers": [update.scaler_state() for update in self.updates],
            "skipped": {update.name: int(update.skipped) for update in self.updates},
            "images": self.images.fingerprint,
            "config": to_json(self.config),
            "teacher": self._teacher,
        }
        self._saver.save(
            Checkpoint(done, *self._tensors(), state),
            loss,
            conditions=self._conditions(done),
            first=log.sync,
            then=self._sketch(done, log.history),
            required=required,
        )

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the model's and the optimizers' tensors, by name."""
        return self.model.state_dict(), {name: tensor for update in self.updates for name, tensor in update.tensors()}

    def _sketch(self, done: int, history: History) -> Callable[[], None]:
        """Predict what the pictures of a step show; return what draws them."""
        title, plan = f"{self.config.recipe}, step {done}", self._memory.plan()
        return self._judge.sketch(self.model, history.records(), title, plan)

    def _load_judged(self, images: RunImages) -> tuple[Tensor, Tensor]:
        """Return images and draw ids to judge by: of another seed, for where they are also trained on."""
        count = min(NUM_IMAGES, 4 * len(images.judged))
        size = self.config.method.encoder.image_size
        layout = StepLayout.uniform(image_size=size, batch_size=count, micro_batch=count)
        data = self._micro_batches(images.judged, layout, self.config.run.seed + 1)
        ((batch,),) = Feed(PilLoader(workers=0), data, images.quarantine.add).steps(0, 1)
        return self._on_device(batch)

    def _micro_batches(self, images: Images, layout: StepLayout, seed: int) -> MicroBatches:
        return MicroBatches(images=images, augment=self.config.augment, seed=seed, layout=layout)

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.images.to(self.device, non_blocking=True), batch.draw_ids.to(self.device, non_blocking=True)


def _compile_blocks(model: nn.Module) -> None:
    # All blocks share one code object; each width, token count and smaller last micro-batch is a variant of it.
    torch._dynamo.config.recompile_limit = 64
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile()
