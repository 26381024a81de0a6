"""Photographs to crops at 224 px: packed by bimkern.pack at 400 px on the shortest side, and the originals.

Both are decoded with PIL in this process, with the drafts of a run: the same batch, again and again.
"""

import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from bench.entries.loaders import photographs
from bench.entry import Case, Entry, Measure, register
from bench.refcheck import WrongResult
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.listing import list_images
from bimkern.data.packing import pack
from bimkern.data.pil import decode
from bimkern.data.repack import Repacking
from bimkern.data.sources.find import find_source
from bimkern.data.step_layout import StepLayout
from bimkern.train.config.run import RunConfig

_NUM_PHOTOGRAPHS = 8
_CLOSE = 16  # levels, on average, that crops may differ by: they are of another resolution


def cases(device: torch.device, quick: bool) -> Iterable[Case]:
    dims = {"B": 4 if quick else 16, "from": "1600x1200", "to": 64 if quick else 224}
    yield Case(device=device, dims=dims, dtype="uint8", pass_name="load")


def measure(case: Case) -> Measure:
    root = tempfile.TemporaryDirectory()
    originals, packed = Path(root.name, "originals"), Path(root.name, "packed")
    originals.mkdir()
    width, height = map(int, case.dims["from"].split("x"))
    for i, photograph in enumerate(islice(photographs((width, height)), _NUM_PHOTOGRAPHS)):
        photograph.save(originals / f"{i}.jpg", quality=90)
    pack(find_source(originals), packed, Repacking(), shard_images=_NUM_PHOTOGRAPHS, workers=0, max_bad_ratio=0)
    return Measure(
        ours=_batch_of(case, packed, root),
        label="packed",
        rivals={"originals": _batch_of(case, originals, root)},
        check=_check,
        items=case.dims["B"],
    )


def _batch_of(case: Case, data: Path, root: object) -> Callable[[], Tensor]:
    images = readable(listing := list_images(find_source(data)), check(listing, workers=0))
    layout = StepLayout.uniform(image_size=case.dims["to"], batch_size=case.dims["B"], micro_batch=case.dims["B"])
    batches = MicroBatches(
        images=images, augment=RandomResizedCrop(), seed=0, layout=layout, jpeg_draft=RunConfig.jpeg_draft
    )

    def load(root: object = root) -> Tensor:  # the files are deleted with the last reference
        return decode(batches, 0).images

    return load


def _check(provider: str, got: Tensor, expected: Tensor) -> None:
    difference = (got.float() - expected.float()).abs().mean().item()
    if got.shape != expected.shape or difference > _CLOSE:
        raise WrongResult(f"{provider}: crops differ by {difference:.1f} levels on average, more than {_CLOSE}")


register(
    Entry(
        name="packed",
        summary="Photographs of 1600 x 1200 to crops at 224 px: packed at 400 px, and the originals.",
        cases=cases,
        measure=measure,
    )
)
