"""The PIL loader: decodes, crops and resizes in worker processes, on any machine.

The training data is one endless stream of epochs, cut into steps without a gap, so that nothing is dropped and any
batch size fits any data set. A step's samples depend on (seed, step, batch size) alone: the loader's state is the step.

Shapes: B samples of a micro-batch, C channels, H W pixels.
"""

import os
import signal
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bimkern.data.augment import RandomResizedCrop, draw_ids, stream
from bimkern.data.source import Images


@dataclass(frozen=True)
class HostBatch:
    """One micro-batch on the host."""

    images: Tensor  # [B, C, H, W] uint8
    draw_ids: Tensor  # [B] int64, names sample and epoch

    def pin_memory(self) -> "HostBatch":
        return HostBatch(self.images.pin_memory(), self.draw_ids.pin_memory())


@dataclass(frozen=True, kw_only=True)
class MicroBatches(Dataset[HostBatch]):
    """Item i is micro-batch i of the run, a pure function of i: the last one of a step may be smaller."""

    images: Images
    augment: RandomResizedCrop
    size: int  # side of the crops in pixels
    seed: int
    batch_size: int  # of a step
    micro_batch: int

    @property
    def per_step(self) -> int:
        return -(-self.batch_size // self.micro_batch)

    def __getitem__(self, index: int) -> HostBatch:
        step, part = divmod(index, self.per_step)
        offset = part * self.micro_batch
        count = min(self.micro_batch, self.batch_size - offset)
        epochs, sample_ids = stream(step * self.batch_size + offset, count, len(self.images), self.seed)
        draws = draw_ids(epochs, sample_ids)
        boxes = self.augment.boxes(draws, self.images.sizes(sample_ids), self.seed)
        flips = self.augment.flips(draws, self.seed)
        pixels = [self._crop(int(i), box, bool(flip)) for i, box, flip in zip(sample_ids, boxes, flips, strict=True)]
        return HostBatch(torch.from_numpy(np.ascontiguousarray(np.stack(pixels))), torch.from_numpy(draws))

    def _crop(self, sample_id: int, box: np.ndarray, flip: bool) -> np.ndarray:
        left, top, width, height = box.tolist()
        corners = (left, top, left + width, top + height)
        crop = self.images.open(sample_id).resize((self.size, self.size), Image.Resampling.BICUBIC, box=corners)
        pixels = np.asarray(crop).transpose(2, 0, 1)
        return pixels[:, :, ::-1] if flip else pixels


def default_workers() -> int:
    """Return the cores this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)


def step_batches(
    data: MicroBatches, first_step: int, last_step: int, *, workers: int, pin_memory: bool
) -> Generator[list[HostBatch], None, None]:
    """Yield the micro-batches of every step in [first_step, last_step), decoded ahead by worker processes.

    With workers=0 they are decoded in the calling process.
    """
    loader = DataLoader(
        data,
        batch_size=None,  # an item is a batch already
        sampler=range(first_step * data.per_step, last_step * data.per_step),
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_run,
    )
    micro_batches = iter(loader)
    for _ in range(first_step, last_step):
        yield [next(micro_batches) for _ in range(data.per_step)]


def _leave_signals_to_the_run(worker: int) -> None:
    """Go on through a Ctrl-C, which reaches the whole process group, and end when the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
