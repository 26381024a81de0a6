"""What ranks agree on between two steps, so that no rank waits for one that has left, and how long they wait."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from bimkern.data.batches import Batch
from bimkern.data.source import SourceError
from bimkern.distributed.agree import first_error, meet
from bimkern.distributed.ranks import Ranks
from bimkern.distributed.transfers import Traffic
from bimkern.errors import BimkernError
from bimkern.train.optim.group import GroupOptimizer, give_up
from bimkern.train.run_folder.dataset_manifest import Quarantine
from bimkern.train.signals import StopSignals


class StepAgreement(Protocol):
    """What a trainer asks of an agreement."""

    def quarantine(self, faults: Mapping[str, str], steps_done: int) -> None:
        """Quarantine files that this rank has found bad."""

    def on_loading(
        self, signals: StopSignals, batch: Sequence[Batch], failure: BimkernError | None, steps_done: int
    ) -> BimkernError | None:
        """Agree on what came of loading a step; return why it failed on any rank, None where all have theirs."""

    def on_step(self, signals: StopSignals, *, out_of_memory: bool = False) -> bool:
        """Agree on what came of a step; return whether memory ran out on any rank."""

    def on_end(self, signals: StopSignals) -> None:
        """Agree for the last time, after the last step."""

    def record(self, steps: int, data_wait: float) -> dict[str, Any]:
        """Return numbers for the metrics, of the steps since the last record."""


class Agreement:
    """What any rank has met with counts for all of them: signals, files in quarantine, failures."""

    def __init__(
        self,
        ranks: Ranks,
        quarantine: Quarantine,
        updates: Sequence[GroupOptimizer],
        *,
        layers: Callable[[], Traffic] = Traffic,
    ) -> None:
        """Take what ranks agree on, and what returns the time that their layers took on the way."""
        self._ranks, self._quarantine, self._updates, self._layers = ranks, quarantine, updates, layers
        self._faults: dict[str, str] = {}  # found by this rank since the last agreement
        self._waited, self._met = 0.0, False  # seconds; in the first step of this process

    def quarantine(self, faults: Mapping[str, str], steps_done: int) -> None:
        """Quarantine files that this rank has found bad; the others do so at the next step.

        Raises:
            SourceError: too many files are in quarantine.
        """
        self._faults |= faults
        self._quarantine.add(faults, steps_done)

    def on_loading(
        self, signals: StopSignals, batch: Sequence[Batch], failure: BimkernError | None, steps_done: int
    ) -> BimkernError | None:
        """Agree on what came of loading a step; return why it failed on any rank, None where all have theirs."""
        if not self._met:
            meet(self._ranks)  # which may take long to open and read the first files
            self._met = True
        failed, found = self._any(signals, failure is not None, bool(self._faults))
        if found:
            try:
                for faults in self._ranks.all_gather_object(self._faults):
                    self._quarantine.add(faults, steps_done)
            except SourceError as error:  # too many files are in quarantine, on every rank
                failure, failed = error, True
            self._faults = {}
        return first_error(self._ranks, failure) if failed else None

    def on_step(self, signals: StopSignals, *, out_of_memory: bool = False) -> bool:
        """Agree on what came of a step; return whether memory ran out on any rank."""
        if out_of_memory:
            give_up(self._updates)
        (failed,) = self._any(signals, out_of_memory)
        return failed

    def on_end(self, signals: StopSignals) -> None:
        """Agree on signals, after the last step."""
        self._any(signals)

    def record(self, steps: int, data_wait: float) -> dict[str, Any]:
        """Return numbers for the metrics, of the steps since the last record; for one process there are none.

        Seconds are those of a step. What sums took is that of this rank.
        """
        if self._ranks.size == 1:
            return {}
        traffic = [update.traffic() for update in self._updates]
        total = sum(traffic, self._layers())
        waits = self._ranks.all_gather_object([data_wait, self._waited / steps])
        self._waited = 0.0
        return {
            "comm_total": total.total / steps,
            "comm_wait": total.wait / steps,
            "comm_total_per_update": [one.total / steps for one in traffic],
            "comm_wait_per_update": [one.wait / steps for one in traffic],
            "data_wait_per_rank": [data for data, _ in waits],
            "rank_skew": max(edge for _, edge in waits) - min(edge for _, edge in waits),
        }

    def _any(self, signals: StopSignals, *flags: bool) -> list[bool]:
        """Return which flags any rank has set, and note a signal that any has received."""
        begin = time.perf_counter()
        number, *found = self._ranks.all_reduce_max([signals.received or 0, *flags])
        self._waited += time.perf_counter() - begin
        signals.agreed = signal.Signals(number) if number else None
        return [bool(flag) for flag in found]
