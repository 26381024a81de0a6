"""PIL in processes against DALI in as many threads; on large photographs, PIL with drafts against full decoding.

All make the same crops of the same JPEGs, at 224 px. The photographs are those of the demo, resampled to the usual size
of a photograph in ImageNet or, with the noise of a sensor, to that of a camera.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.entry import Case, Entry, Measure, register
from bench.refcheck import WrongResult
from bimkern.data import dali
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.demo import demo_images
from bimkern.data.formats import decode_file
from bimkern.data.loader import LoaderName, choose_loader
from bimkern.data.source import ImageFolder, list_images
from bimkern.data.step_layout import StepLayout

_WIDTH, _HEIGHT, _COPIES = 500, 375, 8  # every photograph is written eight times
_WORKERS = 2  # processes or threads; what either prepares ahead, drain() has to use up


class Turn:
    """One loader, which resumes where it stopped; a turn loads several batches."""

    def __init__(self, name: LoaderName, data: MicroBatches, case: Case, folder: object) -> None:
        self._folder = folder  # deleted with the last reference
        loader, _ = choose_loader(name, case.device, case.dims["workers"])
        self._batches = loader.batches(data, 0, 10**6)
        self._data, self._device, self._count = data, case.device, case.dims["batches"]
        self._done = 0

    def load(self) -> tuple[Tensor, Tensor]:
        """Return the draw ids of the last batch, as loaded and as planned."""
        for _ in range(self._count):
            batch = next(self._batches)
            batch.images.to(self._device)
        self._done += self._count
        return batch.draw_ids.cpu(), torch.from_numpy(self._data[self._done - 1].draw_ids)

    def drain(self) -> None:
        """Use up what was prepared while others had their turn: more than either loader prepares ahead."""
        self.load()
        self.load()


def check_batch(provider: str, got: Any, expected: Any) -> None:
    loaded, planned = got
    if not torch.equal(loaded, planned):
        raise WrongResult(f"{provider}: loaded other samples than were planned")


def cases(device: torch.device, quick: bool) -> Iterable[Case]:
    dims: dict[str, Any] = {"B": 8 if quick else 64, "batches": 1 if quick else 8, "workers": _WORKERS}
    dims |= {"from": f"{_WIDTH}x{_HEIGHT}", "to": 224}
    yield Case(device=device, dims=dims, dtype="uint8", pass_name="load")


def measure(case: Case) -> Measure:
    folder = tempfile.TemporaryDirectory()
    photographs = list_images(demo_images())
    for i, file in enumerate(photographs.files):
        photograph = decode_file(photographs.source.paths[0] / file).pixels
        image = photograph.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
        for copy in range(_COPIES):
            image.save(Path(folder.name, f"{i}_{copy}.jpg"), quality=90)
    B = case.dims["B"]
    listing = list_images(ImageFolder(paths=(Path(folder.name),)))
    images = readable(listing, check(listing, workers=_WORKERS))
    layout = StepLayout.uniform(image_size=case.dims["to"], batch_size=B, micro_batch=B)
    data = MicroBatches(images=images, augment=RandomResizedCrop(), seed=0, layout=layout)
    names: list[LoaderName] = ["pil", "dali"]
    if reason := dali.unusable():
        print(f"loaders: without DALI, which cannot be used ({reason})", file=sys.stderr)
        names.remove("dali")
    turns = {name: Turn(name, data, case, folder) for name in names}
    return Measure(
        ours=turns["pil"].load,
        label="pil",
        rivals={name: turn.load for name, turn in turns.items() if name != "pil"},
        check=check_batch,
        items=B * case.dims["batches"],
        # Alone, a loader has prepared nothing while others had their turn.
        before={name: turn.drain for name, turn in turns.items()} if len(turns) > 1 else {},
    )


register(Entry(name="loaders", summary="JPEGs to crops at 224 px: PIL and DALI.", cases=cases, measure=measure))
