"""What a run prints while it trains: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from bimkern.output import on_terminal, say
from bimkern.units import human_bytes

_PLAIN_LINES_EVERY = 5.0  # seconds, of checking()


def describe(record: dict[str, Any]) -> str:
    """Put a metrics record into one line."""
    losses = " ".join("frozen" if loss is None else f"{loss:.4f}" for loss in record["loss_per_stage"])
    accuracy = f"  top-1 {record['held_out_top1']:.1%}" if "held_out_top1" in record else ""
    planned = "" if record["planned_bytes"] is None else f", {human_bytes(record['planned_bytes'])} of it planned"
    return (
        f"epoch {record['epoch']:.2f}  {record['image_size']} px  loss {losses}{accuracy}  lr {record['lr']:.2e}  "
        f"{record['images_per_s']:.0f} images/s  data wait {record['data_wait']:.0%}  "
        f"peak {human_bytes(record['peak_bytes'])}{planned}"
    )


@contextmanager
def checking(doing: str = "checking", did: str = "checked") -> Iterator[Callable[[int, int], None]]:
    """Show how far the check of the images, or other work on each, has come: a function of the files done and to do."""
    if on_terminal():
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), transient=True) as bar:
            task = bar.add_task(f"{doing} the images")
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    start = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_LINES_EVERY or (done == total and last > start):
            last = now
            say(f"{did} {done} of {total} images, {done / (now - start):.0f} a second")

    yield line


class _BarOverRecord(Progress):
    """A progress bar with the last record on the lines below it."""

    record = "the first steps take longest"

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.record)


class Reporter:
    """Show the progress of a run."""

    def __init__(self, *, done: int, total: int) -> None:
        self._total = total
        self._first: tuple[int, float] | None = None  # the first finished step, and when: from there on steps are alike
        self._bar: _BarOverRecord | None = None
        if on_terminal():
            # Two lines: on a narrow terminal the record would else squeeze the bar to nothing.
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = _BarOverRecord(*columns, console=Console())
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done)

    def step(self, done: int, record: dict[str, Any] | None) -> None:
        """Report that `done` steps are finished, with the record of the last one if it was logged."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            if record is not None:
                self._bar.record = describe(record)
            return
        now = time.monotonic()
        first, start = self._first = self._first or (done, now)
        if record is not None:
            left = f"  {(now - start) / (done - first) * (self._total - done):.0f} s left" if done > first else ""
            say(f"step {done}/{self._total}  {describe(record)}{left}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
