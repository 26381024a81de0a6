"""How to load: two loaders behind one interface, and which of them a run takes."""

import os
from collections.abc import Iterator
from typing import Literal, Protocol

import torch

from bimkern.data import dali, regions
from bimkern.data.augment import Cropping
from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.dali import DaliLoader
from bimkern.data.formats import CONVERTED
from bimkern.data.pil import PilLoader
from bimkern.errors import BimkernError

LoaderName = Literal["auto", "dali", "pil"]
_INSTALL = "pip install 'bimkern[dali]'"


class LoaderError(BimkernError, ValueError):
    """A loader that was asked for cannot be used; the message gives the reason and the remedy."""


class Loader(Protocol):
    """Turns planned micro-batches into pixels, ahead of their use. Every loader sees the same plan."""

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield micro-batches [first, last) of the run.

        Raises:
            BadImages: some of the next micro-batch cannot be read.
            WorkerDied, OutOfResources: loading failed as such; the next micro-batch has not been yielded.
        """


def default_workers() -> int:
    """Return the cores this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)


def choose_loader(
    name: LoaderName,
    device: torch.device,
    workers: int | None,
    channels: int = 3,
    augment: Cropping | None = None,
    *,
    kept: bool = False,
    arrays: bool = False,
) -> tuple[Loader, str]:
    """Return the loader that --loader names and a line that says which it is and why.

    `auto` takes DALI where a GPU decodes images to gray or RGB, else PIL. Whether DALI decodes regions there is
    tested.

    Args:
        name: auto, dali or pil.
        device: where the batches are used.
        workers: processes or threads; None: default_workers().
        channels: that images are decoded to.
        augment: of the run; what it does to pixels needs PIL. None: it crops and flips alone.
        kept: whether images are kept decoded in memory.
        arrays: whether images are arrays and not encoded. DALI leaves these to PIL, in threads of this process.

    Raises:
        LoaderError: DALI is asked for by name and cannot be used here.
        ValueError, Unusable: augment cannot be applied, see its pixel_transform.
    """
    transform = None if augment is None else augment.pixel_transform(channels)
    workers = default_workers() if workers is None else workers
    pil = PilLoader(workers=workers, pin_memory=device.type == "cuda")
    if name == "pil":
        return pil, f"PIL in {workers} processes, as asked"
    if name == "auto" and device.type == "cpu":
        return pil, f"PIL in {workers} processes, the faster one on a CPU"
    wanted = None
    if channels not in CONVERTED:
        wanted = f"DALI decodes to 1 or 3 channels and the encoder takes {channels}"
    elif transform is not None:
        wanted = f"{transform.name} takes images of PIL"
    elif kept:
        wanted = "--cache memory keeps images of PIL"
    elif name == "auto" and arrays:
        wanted = "DALI decodes no arrays and would leave them to PIL, in threads of the training process"
    if wanted is not None:
        if name == "dali":
            raise LoaderError(f"--loader dali: {wanted}; take --loader pil")
        return pil, f"PIL in {workers} processes, as {wanted}"
    reason = dali.unusable(device)
    if reason is None:
        threads, on_gpu = max(1, workers), device.type == "cuda"
        refusal = regions.unusable(device) if on_gpu else None
        where = f"on {device}" if on_gpu else f"in {threads} threads"
        whole = f", whole images, as it cannot decode regions of them ({refusal})" if refusal else ""
        loader = DaliLoader(threads=threads, device=device, regions=refusal is None)
        return loader, f"DALI, decodes, crops, resizes and flips {where}{whole}"
    if name == "dali":
        raise LoaderError(f"--loader dali: DALI cannot be used ({reason}); {_INSTALL}, or take --loader pil")
    return pil, f"PIL in {workers} processes, as DALI cannot be used ({reason}); {_INSTALL}"
