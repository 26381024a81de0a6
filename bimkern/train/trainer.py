"""The mechanics of any run: resume, load, step, log, save, stop, roll back. A task knows what is trained."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.loader import Loader
from bimkern.data.resilient_loader import LoadingFailed, ResilientLoader
from bimkern.data.source import SourceError
from bimkern.data.step_layout import StepLayout
from bimkern.distributed.ranks import ALONE
from bimkern.errors import BimkernError, RunError
from bimkern.output import say
from bimkern.train import device as devices
from bimkern.train.callbacks import NO_CALLBACKS, Callbacks
from bimkern.train.checkpoint.store import Checkpoint, CheckpointError
from bimkern.train.checkpoint.streamed import Streamed
from bimkern.train.config.extension import extends
from bimkern.train.config.run import ConfigError, TrainingConfig
from bimkern.train.config.serialize import refuse_other, to_json
from bimkern.train.loop.session import Session
from bimkern.train.loop.sharing import SharedImages, Sharing
from bimkern.train.loop.streaming import all_saved, served
from bimkern.train.loop.unwritten import Unlogged
from bimkern.train.memory import allocator
from bimkern.train.memory.budget import OutOfMemory, UpdateOutOfMemory, is_out_of_memory
from bimkern.train.memory.live_bytes import LiveBytes, held_bytes
from bimkern.train.memory.tracker import AllocationTracker
from bimkern.train.optim.divergence import PATIENCE, Divergence
from bimkern.train.reporting import resolved
from bimkern.train.reporting.bottleneck import BottleneckWarning
from bimkern.train.reporting.history import History
from bimkern.train.reporting.metrics import Metrics, refuse_older
from bimkern.train.reporting.running_mean import RunningMean
from bimkern.train.reporting.throughput import TimedLoader
from bimkern.train.run_folder.dataset_manifest import FrozenDataset
from bimkern.train.run_folder.folder import RunFolder
from bimkern.train.signals import Stopped
from bimkern.train.task import StepResult, Task
from bimkern.watchdog import Interrupted


class Starved(RunError):
    """There are no more images to train on; the message says what is saved."""

    of_all_ranks = True


class Trainer:
    """One run of a task, from its last checkpoint or from the start."""

    def __init__(
        self,
        config: TrainingConfig,
        task: Task,
        layout: StepLayout,
        *,
        images: FrozenDataset,
        loader: Loader,
        folder: RunFolder,
        device: torch.device,
        callbacks: Callbacks = NO_CALLBACKS,
        sharing: Sharing | None = None,
    ) -> None:
        run = config.run
        self._sharing = sharing = sharing or SharedImages(ALONE)
        self.ranks, self._callbacks = sharing.ranks, callbacks
        self.config, self.task, self.layout, self.folder, self.device = config, task, layout, folder, device
        self.images, self._loading = images, f"{loader}"
        self._edge = devices.StepEdge(device)
        self.loader = TimedLoader(loader, self._edge.pending)
        data = MicroBatches(
            images=images.images, augment=config.augment, seed=run.seed, layout=layout, jpeg_draft=run.jpeg_draft
        )
        self._agreement = sharing.agreement(images.quarantine, task.updates)
        self.resilient_loader = ResilientLoader(self.loader, data, self._agreement.quarantine)
        self._bottleneck = BottleneckWarning()
        self._interval_loss = RunningMean()
        self.saver = sharing.saver(folder.checkpoints, every=run.save_every)
        self._divergence = Divergence(task.updates, folder.path, precision=run.precision)
        self._live_activation_bytes: int | None = None
        self._extended_at: list[int] = []  # the steps that the run had when it was extended
        self._memory = allocator.choose(run.arena, device, compiled=run.compile, gathers=run.gathers_layers)
        self._is_countable = not (run.compile or run.gathers_layers)  # else some of it is not a step's own

    def train(self) -> None:
        """Run to the end.

        Raises:
            Stopped: a signal ended the run, or its last step could not be saved.
            Diverged: rolling back did not help.
            Starved: nothing more can be loaded.
            OutOfMemory: there was not enough for a step.
            ConfigError, CheckpointError: the checkpoint is of another run, or does not fit.
        """
        with self.ranks.patient():  # disks may be slow
            done = self._resume()
            facts = resolved.start(self.config, self.layout, self.device, self._loading, done)
            self.folder.record(self.config, None if done == self.layout.num_steps else facts)
            (watched,) = self.ranks.all_reduce_max([self._callbacks.on_step is not None])
        if done == self.layout.num_steps:
            # Without them it was killed between its last checkpoint and its pictures.
            undrawn = self.ranks.broadcast_object(not self.folder.has_picture(self.task.pictures.newest))
            if undrawn or self.config.run.log:
                with closing(self.metrics(done)) as log:
                    self._after_save(done, log, self._snapshot(done, log.history) if undrawn else lambda: None)
            return
        if self.config.run.compile:
            self.task.compile()
        session = Session(self, done, watched=bool(watched))
        signals = session.signals
        try:
            with devices.repeatable_kernels() if self.config.run.deterministic else nullcontext(), session:
                self._loop(session)
        except Interrupted as hung:  # a save; a hung loader ends like any step
            raise signals.stopped(f"; {hung}") from hung
        except OutOfMemory as error:
            if signals.agreed is None:
                self._report_saves()  # the session has waited for the last one
                raise
            raise signals.stopped(f"; {error}; nothing saved since step {self.saver.saved_step}") from error
        self._agreement.on_end(signals)
        if signals.agreed is not None:  # in or after the last step: all is saved, and what comes may hang
            raise signals.stopped(f" after step {session.done}, the last")

    def _loop(self, session: Session) -> None:
        run = self.config.run
        while session.done < self.layout.num_steps:
            batch = self._next(session)
            result = self._step(session, batch)
            done = session.done
            if done == session.first + 1:
                self._finish_updates()
                self.saver.reserve(*self._tensors())  # the optimizer's exist from now on
            if done > 1 and self.task.conditions(done - 1) != self.task.conditions(done - 2):
                self._interval_loss.clear()
            self._interval_loss.add(result.losses[result.num_frozen :].sum())
            last, evaluated, record = done == self.layout.num_steps, self.task.is_evaluated(done), None
            logged = done == 1 or done % run.log_every == 0 or last or evaluated
            exact = last or evaluated or done % PATIENCE == 0
            if exact or (logged and not self._divergence.is_learning()):  # lines cost no overlap while all learn
                self._finish_updates()  # so that the updates that were skipped are those up to this batch
            if logged:
                record = self._record(session, result)
                if evaluated:
                    record |= self.task.held_out_record()
                    session.throughput.skip(done)
                with self.ranks.behind_rank_0():
                    session.log.log(record)
                self._bottleneck.note(done, record["data_wait"], record["images_per_s"], session.prefetcher)
            if (logged or exact) and self._sharing.any(self._divergence.found(done)):
                self._roll_back(session, batch)
                continue
            session.reporter.step(done, record)
            if session.watched:
                losses = self.ranks.all_reduce(result.losses)
                self._callbacks.finished(done, self.layout.num_steps, losses, result.num_frozen, result.lr)
            self._report_saves()
            if last or session.signals.agreed is not None:
                self._end(session)
            elif done % run.save_every == 0:
                self._finish_updates()
                if all(self._sharing.join([self._divergence.is_learning()])):
                    self._save(session, required=False)

    def _next(self, session: Session) -> list[Batch]:
        """Return the next step's micro-batches of this rank, once every rank has its own."""
        batch, failure = list[Batch](), None
        try:
            with self._sharing.loading(session.signals.pending):
                batch = session.prefetcher.next()
        except Interrupted:
            assert session.signals.received is not None  # which the agreement acts on
        except (LoadingFailed, SourceError) as error:
            failure = error
        first = self._agreement.on_loading(session.signals, batch, failure, session.done)
        if session.signals.agreed is not None:
            self._end(session)
        if first is not None:
            self._starve(session, first)
        return batch

    def _starve(self, session: Session, error: BimkernError) -> NoReturn:
        """End the run for want of images."""
        saved = f"{session.done} steps are done and saved"
        try:
            self._save_last(session)
        except CheckpointError as unsaved:
            saved = f"{session.done} steps are done; {unsaved}"
        remedy = "; once they can be read again, or with a larger --max-bad-ratio, "
        when = remedy if isinstance(error, SourceError) else "; "
        raise Starved(f"{error}. {saved}{when}the same command resumes the run") from error

    def _finish_updates(self) -> None:
        """Have every update made that is begun.

        Raises:
            UpdateOutOfMemory: this rank has not the memory for one, which others have made.
        """
        try:
            for update in self.task.updates:
                update.finish()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            remedy = "choose --shard optimizer, more ranks or a smaller recipe"
            raise UpdateOutOfMemory(f"rank {self.ranks.rank}: not enough memory to update weights; {remedy}") from error

    def _step(self, session: Session, batch: list[Batch]) -> StepResult:
        """Run the next step; on out-of-memory some of its updates may already be applied.

        The second step of a process, or of an image size, is the first in which nothing but activations is allocated:
        it is counted.

        Raises:
            OutOfMemory: there was not enough memory.
        """
        index, segment = session.done, self.layout.at(session.done)
        number = index - max(session.first, segment.first_step)
        if number == 0:
            self._live_activation_bytes = None
        counted = LiveBytes() if number == 1 and self._is_countable else None
        tracker = None if counted is None else AllocationTracker(self.task.model.parameters(), counted)
        try:
            with tracker or nullcontext(), self._sharing.stepping():
                result = self.task.step(index, batch, self._memory)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            result = None
        failed = self._agreement.on_step(session.signals, out_of_memory=result is None)
        if failed or result is None:  # raised out here, the error keeps nothing of the step alive
            raise OutOfMemory(f"step {index + 1}: not enough memory for {segment.micro_batch} images at a time")
        self._edge.mark()
        if counted is not None:
            self._live_activation_bytes = counted.peak
        session.done += 1
        return result

    def _end(self, session: Session) -> None:
        """Save what the run ends with, at its last step or where a signal came.

        Raises:
            Stopped: it came before the last step, or nothing could be saved.
        """
        done, received = session.done, session.signals.agreed
        what = f"stopped by {received.name} after step {done}" if received else f"step {done}, the last, is done"
        exit_code = 128 + received if received else 1
        try:
            self._save_last(session)
        except CheckpointError as error:
            raise Stopped(f"{what}; {error}", exit_code=exit_code) from error
        if done < self.layout.num_steps:
            raise Stopped(what, exit_code=exit_code)

    def _record(self, session: Session, result: StepResult) -> dict[str, Any]:
        """Return a line of the metrics; updates that several ranks have begun are not in its `skipped_updates` yet."""
        done, frozen = session.done, result.num_frozen
        learning = self.ranks.all_reduce(result.losses)[frozen:].tolist()  # waits for the device
        interval = session.throughput.interval(done)
        held, peak = held_bytes(self.device)
        seen, seen_before = (self.layout.image(step) for step in (done, done - interval.steps))
        return {
            "step": done,
            "epoch": seen / len(self.images.images),
            "image_size": self.layout.at(done - 1).image_size.saved,
            "loss": sum(learning),
            "loss_per_stage": [None] * frozen + learning,
            "lr": result.lr,
            "skipped_updates": self._sharing.join([int(update.skipped) for update in self.task.updates]),
            "images_per_s": (seen - seen_before) / interval.seconds,
            "data_wait": interval.waited / interval.seconds,
            "images_quarantined": len(self.images.quarantine.files),
            "held_bytes": held,
            "peak_bytes": max(held, peak),
            "live_activation_bytes": self._live_activation_bytes,
            **self._memory.record(),
            **self._agreement.record(interval.steps, interval.waited / interval.seconds),
        }

    def _resume(self) -> int:
        """Load the newest intact checkpoint; return the optimizer steps done."""
        saved = self._sharing.load(self.folder.checkpoints, self.task.updates)
        if saved is None:
            if self.config.run.extend:
                raise ConfigError(f"--extend: {self.folder.path} has no checkpoint to continue from; leave it out")
            return 0
        refuse_older(self.folder.path)
        what = f"the checkpoint of step {saved.step} in {self.folder.checkpoints}"
        before = saved.state.get("config")
        refuse_other(before, self.config, f"{what} is of a run", "choose another --out", resumes=True)
        if saved.state.get("images") != self.images.fingerprint:
            raise ConfigError(
                f"{self.folder.path}: its checkpoints were trained on other images than images.jsonl lists; "
                f"choose another --out"
            )
        self.task.refuse_other(saved.state, what)
        path, num_images = self.folder.path, len(self.images.images)
        extended = extends(self.config, before, saved.step, num_images, str(path))
        try:
            self._load(saved)
        except BimkernError:  # such as of a rank that is lost
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{what} does not fit ({' '.join(str(error).split())})") from error
        self._extended_at = [*saved.state.get("extended_at", []), *([saved.step] if extended else [])]
        if extended:
            say(f"extending {path} from step {saved.step} to {self.layout.num_steps}, on the longer run's schedule")
        elif saved.step < self.layout.num_steps:
            say(f"resuming {path} at step {saved.step} of {self.layout.num_steps}")
        else:
            say(f"{path} is finished, {saved.step} steps; --extend continues it, another --out trains again")
        return saved.step

    def _load(self, saved: Checkpoint) -> None:
        self.task.load_state(saved.model)
        for update, scaler in zip(self.task.updates, self._sharing.own(saved.state["scalers"]), strict=True):
            update.load_tensors(saved.optimizer)
            update.load_scaler_state(scaler)
            update.skipped.fill_(saved.state["skipped"][update.name])
        self.saver.best, self.saver.saved_step = saved.state["best"], saved.step

    def _roll_back(self, session: Session, batch: list[Batch]) -> None:
        """Return to the last checkpoint."""
        batch = self._sharing.whole(batch)
        with self.ranks.behind_rank_0():
            dumped = self._divergence.dump(session.done, batch)
            self.saver.wait()  # it may be writing the very checkpoint
        step = self._resume()
        self._divergence.returned(session.done, step, dumped)
        self._interval_loss.clear()
        with self.ranks.behind_rank_0():
            session.log.cut_back(step)
        session.load_from(step)

    def _save_last(self, session: Session) -> None:
        """Save after the last step of this process, unless that is saved or was done by another process."""
        self._finish_updates()
        self._finish_saves()
        if self.ranks.broadcast_object(self.saver.saved_step) != session.done:
            self._save(session, required=True)
        self._report_saves()

    def _finish_saves(self) -> None:
        with self.ranks.behind_rank_0():
            self.saver.wait()

    def _report_saves(self) -> None:
        self._callbacks.saved(self.saver.written(), self.folder.pictures)

    def _save(self, session: Session, *, required: bool) -> None:
        """Have a checkpoint written and pictures drawn; where none can be, continue without, unless it is required."""
        self._finish_saves()
        done, log = session.done, session.log
        loss = float(self.ranks.all_reduce(torch.tensor(self._interval_loss.take(), dtype=torch.float64)))
        draw = self._snapshot(done, log.history)
        state = {
            "scalers": self._sharing.join([update.scaler_state() for update in self.task.updates]),
            "skipped": dict(self._sharing.join([(update.name, int(update.skipped)) for update in self.task.updates])),
            "images": self.images.fingerprint,
            "config": to_json(self.config),
            "extended_at": self._extended_at,
            **self.task.identity(),
        }
        model, optimizer = self._tensors()
        with all_saved(self.ranks) if required else nullcontext(), served(model | optimizer, self.ranks):
            self.saver.save(
                Checkpoint(done, model, optimizer, state),
                loss,
                conditions=self.task.conditions(done - 1),
                first=log.sync,
                then=lambda: self._after_save(done, log, draw),
                required=required,
            )

    def _tensors(self) -> tuple[dict[str, Tensor | Streamed], dict[str, Tensor | Streamed]]:
        """Return the task's and the optimizers' tensors, by name."""
        return self.task.state(), {name: tensor for update in self.task.updates for name, tensor in update.tensors()}

    def metrics(self, done: int) -> Metrics | Unlogged:
        """Open the metrics of the run, and drop the records after a step."""
        if self.ranks.rank:
            return Unlogged()
        return Metrics.of(self.config, self.task.pictures, self.folder, after_step=done)

    def _snapshot(self, done: int, history: History) -> Callable[[], Path | None]:
        return self.task.snapshot(done, history.records(), self._memory.plan())

    def _after_save(self, done: int, log: Metrics | Unlogged, draw: Callable[[], Path | None]) -> None:
        try:
            picture = draw()
            if picture is not None:
                log.log_picture(done, picture)
        finally:
            log.publish(self.saver.saved_step)
