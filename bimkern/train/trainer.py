"""The training loop: it runs any method, and knows none."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.feed import Feed, FeedError
from bimkern.data.loader import Loader
from bimkern.data.pil import PilLoader
from bimkern.data.source import Images, SourceError
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.mim.reconstruct import hidden_errors
from bimkern.models import attention
from bimkern.models.layers import Block, set_attention, set_compute_dtype
from bimkern.train import checkpoint as checkpoints
from bimkern.train import metrics, optimizers, pictures
from bimkern.train.checkpoint import Checkpoint, CheckpointError
from bimkern.train.config import DTYPES, Config, ConfigError, refuse_other, resolve_device, to_json
from bimkern.train.console import Reporter
from bimkern.train.export import Trained, write_backbones
from bimkern.train.memory import LiveBytes, held_bytes
from bimkern.train.optim import GroupOptimizer
from bimkern.train.outage import Outage
from bimkern.train.run_folder import RunFolder
from bimkern.train.run_images import RunImages
from bimkern.train.saver import Saver
from bimkern.train.signals import Stopped, StopSignals

logger = logging.getLogger("bimkern.train")

_JUDGED_IMAGES = 64
_DRAWN_IMAGES = 6
_PATIENCE = 10  # updates in a row that a group may skip, before the run returns to its last checkpoint
_WAIT_WORTH_SAYING = 0.05  # share of the time


class Diverged(RuntimeError):
    """Training cannot go on from where it is, nor from its last checkpoint."""


class Starved(RuntimeError):
    """There is nothing more to train on; what has been trained is saved."""


@dataclass(frozen=True)
class Outcome:
    """How well every stage reconstructs images that were put aside, against the mean visible colour."""

    errors: list[float]
    baselines: list[float]


class Trainer:
    """A run: model, optimizers and data, built from a config and ready to start or to go on."""

    def __init__(self, config: Config, images: RunImages, loader: Loader, folder: RunFolder) -> None:
        run = config.run
        self.config, self.folder = config, folder
        self.device = resolve_device(run.device)
        torch.manual_seed(run.seed)
        self.model = MIM(config.method).to(self.device)
        dtype = DTYPES[run.precision]
        set_compute_dtype(self.model, dtype)
        set_attention(self.model, attention.choose(run.attention, self.device, dtype, deterministic=run.deterministic))
        make = optimizers.choose(run.optimizer, self.device)
        self.updates = [
            GroupOptimizer(name, group, config.optim, device=self.device, fp16=run.precision == "fp16", make=make)
            for name, group in config.method.flow.partition(self.model).items()
        ]
        self.images = images
        self.total_steps = run.num_steps(len(images.images))
        data = self._micro_batches(images.images, run.batch_size, run.images_at_a_time, run.seed)
        self.feed = Feed(loader, data, images.quarantine.add)
        self._judged = self._load_judged(images)
        self._interval_losses: list[Tensor] = []
        self._saver = Saver(folder.checkpoints, every=run.save_every)
        self._pictures = Outage(f"{folder.pictures}")
        self._live_activation_bytes: int | None = None
        self._rolled_back_to: int | None = None
        self._data_is_short = False  # and it has been said

    def train(self) -> Outcome:
        """Run from the last checkpoint, or from the start, to the end."""
        done = self._resume()
        self.folder.record(self.config)
        if done < self.total_steps:
            with _repeatable_kernels() if self.config.run.deterministic else nullcontext():
                self._train_from(done)
        else:
            self._draw(done)  # the run may have been killed between its last checkpoint and the pictures
        write_backbones(self.folder.exported, Trained(self.config, self.total_steps, self.model.state_dict()))
        return self._judge()

    def _train_from(self, done: int) -> None:
        if self.config.run.compile:
            _compile_blocks(self.model)
        log = metrics.Metrics(self.folder.path, after_step=done)
        reporter = Reporter(done=done, total=self.total_steps)
        try:
            with StopSignals() as signals, self._saver:
                while done < self.total_steps:
                    done = self._run_from(done, log, reporter, signals)
        finally:
            log.close()
            reporter.close()

    def _run_from(self, first: int, log: metrics.Metrics, reporter: Reporter, signals: StopSignals) -> int:
        """Train from step `first` to the end, or until it has to roll back; return the steps that stand.

        Raises:
            Stopped: a signal came; the state is saved.
            Diverged: rolling back did not help.
            Starved: nothing more can be loaded; the state is saved.
        """
        loaded = self.feed.steps(first, self.total_steps)
        with closing(loaded):
            return self._run_on(loaded, first, log, reporter, signals)

    def _run_on(
        self,
        loaded: Iterator[list[Batch]],
        first: int,
        log: metrics.Metrics,
        reporter: Reporter,
        signals: StopSignals,
    ) -> int:
        run = self.config.run
        clock = _Clock(first)
        for done in range(first + 1, self.total_steps + 1):
            with clock.waiting():
                batch = self._next(loaded, done - 1, log)
            # The second step of a process is the first in which nothing but activations is born.
            counter = LiveBytes(self.model.parameters()) if done == first + 2 and not run.compile else None
            with counter or nullcontext():
                losses, lr = self.step(done - 1, batch)
            if counter is not None:
                self._live_activation_bytes = counter.peak
            if done == first + 1:
                self._saver.reserve(*self._tensors())  # the optimizer's exist from now on
            self._interval_losses.append(losses)
            last = done == self.total_steps
            record = None
            if done == 1 or done % run.log_every == 0 or last:
                record = self._record(done, losses, lr, clock)
                log.log(record)
                self._say_if_data_is_short(record, first)
            if (record is not None or done % _PATIENCE == 0) and self._is_diverging(done):
                return self._roll_back(done, batch, log)
            reporter.step(done, record)
            required = last or signals.received is not None
            if required or (done % run.save_every == 0 and self._is_learning()):
                with clock.paused():
                    self._save(done, log, required=required)
                    self._draw(done)
            if signals.received is not None and not last:
                raise Stopped(signals.received, done)
        return self.total_steps

    def _next(self, loaded: Iterator[list[Batch]], done: int, log: metrics.Metrics) -> list[Batch]:
        try:
            return next(loaded)
        except (FeedError, SourceError) as error:
            if self._interval_losses:  # else there is nothing that is not saved
                self._save(done, log, required=True)
            raise Starved(f"{error}. {done} steps are done and saved; the same command goes on from there") from error

    def step(self, index: int, batch: list[Batch]) -> tuple[Tensor, float]:
        """Run optimizer step `index` (from 0); return the stages' losses [S] and the learning rate.

        The schedule is read in the middle of the step: at its edges the first or the last step would learn nothing.
        """
        run = self.config.run
        lr = run.peak_lr * self.config.schedule.factor((index + 0.5) / self.total_steps)
        for update in self.updates:
            update.lr = lr
        batches = [MicroBatch(images, self.model.views(ids, run.seed)) for images, ids in map(self._on_device, batch)]
        return self.config.method.flow.step(self.model, batches, self.updates, slices=run.slices), lr

    def _record(self, done: int, losses: Tensor, lr: float, clock: "_Clock") -> dict[str, Any]:
        per_block = losses.tolist()  # waits for the device
        steps, seconds, waited = clock.lap(done)
        held, peak = held_bytes(self.device)
        return {
            "step": done,
            "epoch": done * self.config.run.batch_size / len(self.images.images),
            "loss": sum(per_block) / len(per_block),
            "loss_per_block": per_block,
            "lr": lr,
            "skipped_updates": [int(update.skipped) for update in self.updates],
            "images_per_s": steps * self.config.run.batch_size / seconds,
            "data_wait": waited / seconds,
            "images_set_aside": len(self.images.quarantine.files),
            "held_bytes": held,
            "peak_bytes": max(held, peak),
            "live_activation_bytes": self._live_activation_bytes,
        }

    def _say_if_data_is_short(self, record: dict[str, Any], first: int) -> None:
        """Say once that the loader is what limits the run; its first batches are always waited for."""
        if self._data_is_short or record["step"] == first + 1 or record["data_wait"] <= _WAIT_WORTH_SAYING:
            return
        self._data_is_short = True
        logger.warning(
            "step %d: %.0f %% of the time goes into waiting for images; the loader's ceiling here is %.0f images/s. "
            "More --workers, the other --loader, or smaller files raise it",
            record["step"],
            100 * record["data_wait"],
            record["images_per_s"],
        )

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
        try:
            self._take_over(saved)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{what} does not fit ({' '.join(str(error).split())})") from error
        if saved.step < self.total_steps:
            print(f"resuming {self.folder.path} at step {saved.step} of {self.total_steps}", flush=True)
        else:
            print(f"{self.folder.path} is finished, {saved.step} steps; choose another --out to train anew", flush=True)
        return saved.step

    def _take_over(self, saved: Checkpoint) -> None:
        self.model.load_state_dict(saved.model)
        for update, scaler in zip(self.updates, saved.state["scalers"], strict=True):
            update.load_tensors(saved.optimizer)
            update.load_scaler_state(scaler)
            update.skipped.fill_(saved.state["skipped"][update.name])
        self._saver.best = saved.state["best"]

    def _is_diverging(self, done: int) -> bool:
        """Name the groups whose updates were skipped of late; say whether one has not learnt for too long."""
        skipped = {update.name: int(update.skipped_in_a_row) for update in self.updates}
        for name, count in skipped.items():
            if count:
                logger.warning("step %d: %s has a gradient that is not finite; %d updates skipped", done, name, count)
        return max(skipped.values()) >= _PATIENCE

    def _is_learning(self) -> bool:
        """Say whether every group took its last update; else a checkpoint would be none to return to."""
        return not any(update.skipped_in_a_row for update in self.updates)

    def _roll_back(self, done: int, batch: list[Batch], log: metrics.Metrics) -> int:
        """Keep the batch for whoever wants to know, and return to the last checkpoint."""
        dump = self.folder.path / f"diverged-step-{done:08d}.safetensors"
        save_file({name: torch.cat([getattr(part, name) for part in batch]) for name in ("images", "draw_ids")}, dump)
        self._saver.wait()  # it may be writing the very checkpoint
        step = self._resume()
        if step in (0, self._rolled_back_to):
            raise Diverged(
                f"no finite gradient for {_PATIENCE} updates, up to step {done}, and no checkpoint to return to that "
                f"would change it; the last batch is in {dump}. A smaller --base-lr, or --precision bf16 or fp32, helps"
            )
        self._rolled_back_to = step
        for update in self.updates:
            update.skipped_in_a_row.zero_()
        self._interval_losses.clear()
        log.cut_back(step)
        return step

    def _save(self, done: int, log: metrics.Metrics, *, required: bool) -> None:
        """Have a checkpoint written; where none can be, go on without, unless it is required."""
        loss = torch.stack(self._interval_losses).mean().item()
        self._interval_losses.clear()
        state = {
            "scalers": [update.scaler_state() for update in self.updates],
            "skipped": {update.name: int(update.skipped) for update in self.updates},
            "images": self.images.fingerprint,
            "config": to_json(self.config),
        }
        self._saver.save(Checkpoint(done, *self._tensors(), state), loss, first=log.sync, required=required)

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the model's and the optimizers' tensors, by name."""
        return self.model.state_dict(), {name: tensor for update in self.updates for name, tensor in update.tensors()}

    def _draw(self, done: int) -> None:
        folder, (images, ids) = self.folder.pictures, self._judged
        title = f"{self.config.recipe}, step {done}"
        chosen = slice(0, _DRAWN_IMAGES)
        with self._pictures.tolerated():
            pictures.draw_reconstructions(
                folder / "reconstruction.png", self.model, images[chosen], ids[chosen], self.config.run.seed, title
            )
            records = metrics.read(self.folder.path)
            if records:
                pictures.draw_curves(folder / "curves.png", records)
                pictures.draw_memory(folder / "memory.png", records)

    def _judge(self) -> Outcome:
        errors, baselines = hidden_errors(self.model, *self._judged, seed=self.config.run.seed)
        return Outcome(errors.tolist(), baselines.tolist())

    def _load_judged(self, images: RunImages) -> tuple[Tensor, Tensor]:
        """Return images and draw ids to judge by: of another seed, for where they are also trained on."""
        count = min(_JUDGED_IMAGES, 4 * len(images.judged))
        data = self._micro_batches(images.judged, count, count, self.config.run.seed + 1)
        ((batch,),) = Feed(PilLoader(workers=0), data, images.quarantine.add).steps(0, 1)
        return self._on_device(batch)

    def _micro_batches(self, images: Images, batch_size: int, micro_batch: int, seed: int) -> MicroBatches:
        return MicroBatches(
            images=images,
            augment=self.config.augment,
            size=self.config.method.encoder.image_size,
            seed=seed,
            batch_size=batch_size,
            micro_batch=micro_batch,
        )

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.images.to(self.device, non_blocking=True), batch.draw_ids.to(self.device, non_blocking=True)


class _Clock:
    """Time steps and the waits for data in them; what runs while it is paused does not count."""

    def __init__(self, done: int) -> None:
        self._done, self._start, self._waited = done, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def lap(self, done: int) -> tuple[int, float, float]:
        """Return the steps, the seconds, and the seconds waited since the last lap."""
        now = time.perf_counter()
        lap = done - self._done, now - self._start, self._waited
        self._done, self._start, self._waited = done, now, 0.0
        return lap


def _compile_blocks(model: nn.Module) -> None:
    # All blocks share one code object; each width, token count and smaller last micro-batch is a variant of it.
    torch._dynamo.config.recompile_limit = 64
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


@contextmanager
def _repeatable_kernels() -> Iterator[None]:
    """Let torch take only kernels whose results repeat, and fail where there is none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # only tests need memory to start as NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
