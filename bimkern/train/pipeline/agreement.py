"""What stages agree on while each goes at its own pace: a few steps later than it is met."""

import signal
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bimkern.data.batches import Batch
from bimkern.distributed.agree import meet
from bimkern.distributed.ranks import Group
from bimkern.errors import BimkernError, RunError
from bimkern.train.pipeline.link import Link
from bimkern.train.run_folder.dataset_manifest import Quarantine
from bimkern.train.signals import StopSignals


class ImagesDiffer(RunError):
    """The ranks have shown different images."""

    of_all_ranks = True


class StageFailed(RunError):
    """A rank cannot continue, so that the others cannot, either."""


class StageAgreement:
    """Signals that any rank has received count for all; a rank that fails ends the run.

    The ranks begin an agreement in every step, and read it after as many further steps as there are ranks behind the
    first, so that none waits for another within the pipeline.
    """

    def __init__(self, ranks: Group, quarantine: Quarantine, link: Link) -> None:
        self._ranks, self._quarantine, self._link = ranks, quarantine, link
        self._pending: deque[Callable[[], list[int]]] = deque()
        self._met = False  # in the first step of this process
        self._images = 0  # a checksum of those of this step

    def quarantine(self, faults: Mapping[str, str], steps_done: int) -> None:
        """Quarantine files that this rank has found bad; the others, which load the same, find them, too.

        Raises:
            SourceError: too many files are in quarantine.
        """
        self._quarantine.add(faults, steps_done)

    def on_loading(
        self, signals: StopSignals, batch: Sequence[Batch], failure: BimkernError | None, steps_done: int
    ) -> None:
        """Note the images of a step.

        Raises:
            StageFailed: they could not be loaded, or a signal came while the loader hung.
        """
        if signals.received is not None and not batch and failure is None:
            hung = StageFailed(
                f"rank {self._ranks.rank}: stopped by {signals.received.name} while its loader hung, after step "
                f"{steps_done}. {self._resumes}"
            )
            hung.exit_code = 128 + signals.received
            raise hung
        if failure is not None:
            raise StageFailed(f"{failure}. {self._resumes}") from failure
        if not self._met:
            meet(self._ranks)  # which may take long to open and read the first files
            self._met = True
        self._images = zlib.crc32(b"".join(part.sample_ids.numpy().tobytes() for part in batch))

    def on_step(self, signals: StopSignals, *, out_of_memory: bool = False) -> bool:
        """Begin an agreement, and read the one that is due; return False.

        Raises:
            StageFailed: memory ran out on this rank.
            ImagesDiffer: the ranks have shown different images.
        """
        if out_of_memory:
            raise StageFailed(
                f"rank {self._ranks.rank}: not enough memory for its stage; choose a smaller --micro-batch. "
                f"{self._resumes}"
            )
        values = [signals.received or 0, self._images, -self._images]
        self._pending.append(self._ranks.begin_all_reduce_max(values))
        self._read(signals, self._ranks.size - 1)
        return False

    def on_end(self, signals: StopSignals) -> None:
        """Read all agreements, after the last step."""
        self.on_step(signals)
        self._read(signals, 0)

    def record(self, steps: int, data_wait: float) -> dict[str, Any]:
        """Return numbers for the metrics, by rank: seconds of a step, and the share of time spent waiting for data."""
        waits = [seconds / steps for seconds in self._link.waits()]
        found = self._ranks.all_gather_object([data_wait, *waits])
        names = ("data_wait_per_rank", "input_wait_per_rank", "output_wait_per_rank")
        return dict(zip(names, map(list, zip(*found, strict=True)), strict=True))

    _resumes = "The same command resumes the run from its last checkpoint"

    def _read(self, signals: StopSignals, most: int) -> None:
        """Read agreements until at most so many are under way."""
        while len(self._pending) > most:
            number, highest, negative = self._pending.popleft()()
            if highest != -negative:
                raise ImagesDiffer("the ranks have read different images; make sure that --data is the same for all")
            if number and signals.agreed is None:
                signals.agreed = signal.Signals(number)
