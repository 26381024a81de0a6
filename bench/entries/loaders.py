"""PIL in processes against DALI in as many threads; on large photographs, PIL with drafts against full decoding.

All make the same crops of the same JPEGs, at 224 px. The photographs are those of the demo, resampled to the usual size
of a photograph in ImageNet or, with the noise of a sensor, to that of a camera.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.entry import Case, Entry, Measure, register
from bench.refcheck import WrongResult
from bimkern.data import dali
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.decoding import decode_file
from bimkern.data.demo import demo_images
from bimkern.data.listing import list_images
from bimkern.data.loader import LoaderName, choose_loader
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.step_layout import StepLayout
from bimkern.train.config.run import RunConfig

_WIDTH, _HEIGHT, _COPIES = 500, 375, 8  # every photograph is written eight times
_LARGE, _QUICK_LARGE = (4000, 3000), (1200, 900)
_NUM_LARGE = 6
_NOISE = 5  # levels in a white area
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
    width, height = _QUICK_LARGE if quick else _LARGE
    dims = {"B": 4, "batches": 1, "workers": 0, "from": f"{width}x{height}", "to": 64 if quick else 224}
    yield Case(device=device, dims=dims, dtype="uint8", pass_name="load")


def measure(case: Case) -> Measure:
    return _of_all_loaders(case) if case.dims["workers"] else _with_drafts(case)


def _with_drafts(case: Case) -> Measure:
    folder = tempfile.TemporaryDirectory()
    width, height = map(int, case.dims["from"].split("x"))
    generator = np.random.default_rng(0)
    for i, photograph in enumerate(islice(photographs((width, height)), _NUM_LARGE)):
        levels = np.asarray(photograph, dtype=np.float32)
        noise = generator.standard_normal(levels.shape, dtype=np.float32) * _NOISE * np.sqrt(0.15 + levels / 255)
        noisy = Image.fromarray((levels + noise).clip(0, 255).round().astype(np.uint8))
        noisy.save(Path(folder.name, f"{i}.jpg"), quality=90)
    full = _data(case, folder.name)
    drafts = {f"--jpeg-draft {draft:g}": replace(full, jpeg_draft=draft) for draft in (RunConfig.jpeg_draft, 3.0, 2.0)}
    turns = {name: Turn("pil", data, case, folder) for name, data in {"pil, full": full, **drafts}.items()}
    first, *others = turns
    return Measure(
        ours=turns[first].load,
        label=first,
        rivals={name: turns[name].load for name in others},
        check=check_batch,
        items=case.dims["B"] * case.dims["batches"],
    )


def photographs(size: tuple[int, int]) -> Iterator[Image.Image]:
    """Yield the photographs of the demo, resampled to a width and height."""
    listing = list_images(demo_images())
    for file in listing.files:
        yield decode_file(listing.source.paths[0] / file).pixels.resize(size, Image.Resampling.BICUBIC)


def write_photographs(folder: Path) -> None:
    """Write JPEGs of the usual size in ImageNet into a folder."""
    for i, image in enumerate(photographs((_WIDTH, _HEIGHT))):
        for copy in range(_COPIES):
            image.save(folder / f"{i}_{copy}.jpg", quality=90)


def _data(case: Case, folder: str) -> MicroBatches:
    listing, B = list_images(ImageFolder(paths=(Path(folder),))), case.dims["B"]
    images = readable(listing, check(listing, workers=_WORKERS))
    layout = StepLayout.uniform(image_size=case.dims["to"], batch_size=B, micro_batch=B)
    return MicroBatches(images=images, augment=RandomResizedCrop(), seed=0, layout=layout)


def _of_all_loaders(case: Case) -> Measure:
    folder = tempfile.TemporaryDirectory()
    write_photographs(Path(folder.name))
    data = _data(case, folder.name)
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
        items=case.dims["B"] * case.dims["batches"],
        # Alone, a loader has prepared nothing while others had their turn.
        before={name: turn.drain for name, turn in turns.items()} if len(turns) > 1 else {},
    )


register(
    Entry(
        name="loaders", summary="JPEGs to crops at 224 px: PIL and DALI; PIL with drafts.", cases=cases, measure=measure
    )
)
