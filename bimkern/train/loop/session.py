"""A session: what one process has while it trains."""

from collections.abc import Generator
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Protocol, Self

from bimkern.data.batches import Batch
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.step_layout import StepLayout
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.loop.unwritten import Unlogged, Unsaved
from bimkern.train.reporting.bottleneck import Prefetcher
from bimkern.train.reporting.metrics import Metrics
from bimkern.train.reporting.progress import Reporter
from bimkern.train.reporting.throughput import Throughput, TimedLoader
from bimkern.train.signals import StopSignals
from bimkern.watchdog import stopped_by


class Trains(Protocol):
    """What a session asks of a trainer."""

    layout: StepLayout
    loader: TimedLoader
    resilient_loader: ResilientLoader
    saver: AsyncSaver | Unsaved

    def metrics(self, done: int) -> Metrics | Unlogged: ...


class Session:
    """Lines and signals of one process, the steps that it loads, and how far it is."""

    def __init__(self, trainer: Trains, done: int, *, watched: bool) -> None:
        """Begin after so many steps; watched: a program asks, on any rank, for the losses of every step."""
        self.watched = watched
        self._trainer, self._last = trainer, trainer.layout.num_steps
        self.signals = StopSignals()
        self.first = self.done = done
        self._steps: Generator[list[Batch], None, None] | None = None
        self._stack = ExitStack()

    def load_from(self, done: int) -> None:
        """Begin, or begin again, after so many steps."""
        self._stop_loading()
        self.first = self.done = done
        self._steps = self._trainer.resilient_loader.steps(done, self._last)
        self.prefetcher = Prefetcher(self._steps, self._trainer.loader)
        self.throughput = Throughput(self._trainer.loader, done)

    def __enter__(self) -> Self:
        trainer = self._trainer
        with ExitStack() as stack:
            self.log = stack.enter_context(closing(trainer.metrics(self.done)))
            self.reporter = stack.enter_context(closing(Reporter(done=self.done, total=self._last)))
            stack.enter_context(self.signals)
            stack.enter_context(stopped_by(self.signals.pending))
            stack.enter_context(trainer.saver)
            stack.callback(self._stop_loading)
            self.load_from(self.done)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def _stop_loading(self) -> None:
        if self._steps is not None:
            self._steps.close()
