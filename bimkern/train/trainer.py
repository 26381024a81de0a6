"""The training loop: it runs any method, and knows none."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.data.loader import HostBatch, MicroBatches, default_workers, step_batches
from bimkern.data.source import Images
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.mim.reconstruct import hidden_errors
from bimkern.models.layers import Block, set_compute_dtype
from bimkern.train import checkpoint as checkpoints
from bimkern.train import metrics, pictures
from bimkern.train.config import DTYPES, Config, ConfigError, resolve_device
from bimkern.train.console import Reporter
from bimkern.train.export import Trained, write_backbones
from bimkern.train.memory import LiveBytes, held_bytes
from bimkern.train.optim import GroupOptimizer
from bimkern.train.run_folder import RunFolder

_JUDGED_IMAGES = 64
_DRAWN_IMAGES = 6


@dataclass(frozen=True)
class Outcome:
    """How well every stage reconstructs images that were put aside, against the mean visible colour."""

    errors: list[float]
    baselines: list[float]


class Trainer:
    """A run: model, optimizers and data, built from a config and ready to start or to go on."""

    def __init__(self, config: Config, images: Images, judged: Images, folder: RunFolder) -> None:
        """Build a run that trains on images, and is judged and drawn on others (or the same, where there are none)."""
        run = config.run
        self.config, self.folder = config, folder
        self.device = resolve_device(run.device)
        if run.deterministic:
            _insist_on_repeatable_kernels()
        torch.manual_seed(run.seed)
        self.model = MIM(config.method).to(self.device)
        set_compute_dtype(self.model, DTYPES[run.precision])
        self.updates = [
            GroupOptimizer(group, config.optim, device=self.device, fp16=run.precision == "fp16")
            for group in config.method.flow.partition(self.model)
        ]
        self.total_steps = run.num_steps(len(images))
        self.data = self._micro_batches(images, run.batch_size, run.images_at_a_time, run.seed)
        # Another seed draws other crops, where the judged images are those that train.
        count = min(_JUDGED_IMAGES, 4 * len(judged))
        self._judged = self._on_device(self._micro_batches(judged, count, count, run.seed + 1)[0])
        self._interval_losses: list[Tensor] = []
        self._best: dict[str, Any] | None = None  # step and loss of the best checkpoint
        self._live_activation_bytes: int | None = None

    def train(self) -> Outcome:
        """Run from the last checkpoint, or from the start, to the end."""
        done = self._resume()
        if done < self.total_steps:
            if self.config.run.compile:
                _compile_blocks(self.model)
            log = metrics.Metrics(self.folder.path, after_step=done)
            reporter = Reporter(done=done, total=self.total_steps)
            try:
                self._loop(done, log, reporter)
            finally:
                log.close()
                reporter.close()
        write_backbones(self.folder.exported, Trained(self.config, self.total_steps, self.model.state_dict()))
        return self._judge()

    def _loop(self, first: int, log: metrics.Metrics, reporter: Reporter) -> None:
        run = self.config.run
        workers = default_workers() if run.workers is None else run.workers
        pin_memory = self.device.type == "cuda"
        loaded = step_batches(self.data, first, self.total_steps, workers=workers, pin_memory=pin_memory)
        clock = _Clock(first)
        for done in range(first + 1, self.total_steps + 1):
            with clock.waiting():
                batch = next(loaded)
            # The second step of a process is the first in which nothing but activations is born.
            counter = LiveBytes(self.model.parameters()) if done == first + 2 and not run.compile else None
            with counter or nullcontext():
                losses, lr = self.step(done - 1, batch)
            if counter is not None:
                self._live_activation_bytes = counter.peak
            self._interval_losses.append(losses)
            record = None
            if done == 1 or done % run.log_every == 0 or done == self.total_steps:
                record = self._record(done, losses, lr, clock)
                log.log(record)
            reporter.step(done, record)
            if done % run.save_every == 0 or done == self.total_steps:
                with clock.paused():
                    self._save(done)
                    self._draw(done)

    def step(self, index: int, batch: list[HostBatch]) -> tuple[Tensor, float]:
        """Run optimizer step `index` (from 0); return the stages' losses [S] and the learning rate."""
        run = self.config.run
        lr = run.peak_lr * self.config.schedule.factor(index / self.total_steps)
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
            "epoch": done * self.config.run.batch_size / len(self.data.images),
            "loss": sum(per_block) / len(per_block),
            "loss_per_block": per_block,
            "lr": lr,
            "images_per_s": steps * self.config.run.batch_size / seconds,
            "data_wait": waited / seconds,
            "held_bytes": held,
            "peak_bytes": peak,
            "live_activation_bytes": self._live_activation_bytes,
        }

    def _resume(self) -> int:
        """Take over the newest intact checkpoint; return the optimizer steps done."""
        saved = checkpoints.load_latest(self.folder.checkpoints)
        if saved is None:
            return 0
        if saved.state["images"] != self._fingerprint():
            raise ConfigError(
                f"--data holds other images than those that {self.folder.path} was trained on "
                f"({len(self.data.images)} now); resume with the same list of files, or choose another --out"
            )
        self.model.load_state_dict(saved.model)
        for update, scaler in zip(self.updates, saved.state["scalers"], strict=True):
            update.load_tensors(saved.optimizer)
            update.load_scaler_state(scaler)
        self._best = saved.state["best"]
        print(f"resuming {self.folder.path} at step {saved.step} of {self.total_steps}", flush=True)
        return saved.step

    def _save(self, done: int) -> None:
        loss = torch.stack(self._interval_losses).mean().item()
        self._interval_losses.clear()
        if self._best is None or loss < self._best["loss"]:
            self._best = {"step": done, "loss": loss}
        state = {
            "best": self._best,
            "scalers": [update.scaler_state() for update in self.updates],
            "images": self._fingerprint(),
        }
        optimizer = {name: tensor for update in self.updates for name, tensor in update.tensors()}
        saved = checkpoints.Checkpoint(done, self.model.state_dict(), optimizer, state)
        checkpoints.save(self.folder.checkpoints, saved, best_step=self._best["step"])

    def _draw(self, done: int) -> None:
        folder, (images, ids) = self.folder.pictures, self._judged
        title = f"{self.config.recipe}, step {done}"
        chosen = slice(0, _DRAWN_IMAGES)
        pictures.draw_reconstructions(
            folder / "reconstruction.png", self.model, images[chosen], ids[chosen], self.config.run.seed, title
        )
        records = metrics.read(self.folder.path)
        pictures.draw_curves(folder / "curves.png", records)
        pictures.draw_memory(folder / "memory.png", records)

    def _judge(self) -> Outcome:
        errors, baselines = hidden_errors(self.model, *self._judged, seed=self.config.run.seed)
        return Outcome(errors.tolist(), baselines.tolist())

    def _micro_batches(self, images: Images, batch_size: int, micro_batch: int, seed: int) -> MicroBatches:
        return MicroBatches(
            images=images,
            augment=self.config.augment,
            size=self.config.method.encoder.image_size,
            seed=seed,
            batch_size=batch_size,
            micro_batch=micro_batch,
        )

    def _on_device(self, batch: HostBatch) -> tuple[Tensor, Tensor]:
        return batch.images.to(self.device, non_blocking=True), batch.draw_ids.to(self.device, non_blocking=True)

    def _fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.data.images.files).encode()).hexdigest()


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
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def _insist_on_repeatable_kernels() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only tests need NaN
