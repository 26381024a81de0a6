"""JPEGs to crops: from a folder, tar shards and Parquet; webdataset and torchvision from the same files.

All decode with PIL in this process, without workers, so that --process-time counts all that they do. Ours load one
batch again and again, the same from every form.
"""

import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.entries.loaders import write_photographs
from bench.entry import Case, Entry, Measure, register
from bench.refcheck import WrongResult
from bimkern import optional
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.listing import list_images
from bimkern.data.pil import decode
from bimkern.data.sources.find import find_source
from bimkern.data.step_layout import StepLayout

_SHARDS = 4
_ROWS = 26  # of a row group
_RIVALS = ("webdataset", "torchvision")

Next = Callable[[], Tensor]


def cases(device: torch.device, quick: bool) -> Iterable[Case]:
    dims = {"B": 8 if quick else 64, "from": "500x375", "to": 64 if quick else 224}
    yield Case(device=device, dims=dims, dtype="uint8", pass_name="load")


def measure(case: Case) -> Measure:
    root = tempfile.TemporaryDirectory()
    folder = Path(root.name, "all", "class")  # torchvision wants one
    folder.mkdir(parents=True)
    write_photographs(folder)
    shards = write_shards(folder, Path(root.name, "shards"))
    forms = {"folder": _ours(case, folder.parent, root), "shards": _ours(case, shards, root)}
    try:
        forms["parquet"] = _ours(case, _write_parquet(folder, Path(root.name, "photographs.parquet")), root)
    except optional.Unusable as reason:
        print(f"sources: without Parquet (pyarrow is {reason})", file=sys.stderr)
    rivals: dict[str, Next] = {name: forms[name] for name in forms if name != "shards"}
    for name, make in (("webdataset", _webdataset), ("torchvision", _torchvision)):
        try:
            rivals[name] = make(case, shards if name == "webdataset" else folder.parent)
        except optional.Unusable as reason:
            print(f"sources: without {name} ({reason})", file=sys.stderr)
    return Measure(ours=forms["shards"], label="shards", rivals=rivals, check=_check, items=case.dims["B"])


def _check(provider: str, got: Tensor, expected: Tensor) -> None:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise WrongResult(f"{provider}: loaded {got.dtype} {list(got.shape)}, not {list(expected.shape)}")
    if provider not in _RIVALS and not torch.equal(got, expected):
        raise WrongResult(f"{provider}: loaded other pixels than the shards")


def _ours(case: Case, data: Path, root: object) -> Next:
    listing, B = list_images(find_source(data)), case.dims["B"]
    images = readable(listing, check(listing, workers=0))
    layout = StepLayout.uniform(image_size=case.dims["to"], batch_size=B, micro_batch=B)
    micro_batches = MicroBatches(images=images, augment=RandomResizedCrop(), seed=0, layout=layout)

    def load(root: object = root) -> Tensor:  # the files are deleted with the last reference
        return decode(micro_batches, 0).images

    return load


def _transform(case: Case) -> Callable[[Any], Any]:
    optional.load("bimkern.torchvision_compat")
    transforms: Any = optional.load("torchvision.transforms")
    augment = RandomResizedCrop()
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(case.dims["to"], scale=augment.scale, interpolation=bicubic)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])


def _webdataset(case: Case, shards: Path) -> Next:
    wds: Any = optional.load("webdataset")
    names = sorted(map(str, shards.glob("*.tar")))
    dataset = wds.WebDataset(names, shardshuffle=_SHARDS).repeat().shuffle(64).decode("pil").to_tuple("jpg")
    batches = iter(dataset.map_tuple(_transform(case)).batched(case.dims["B"], partial=False))
    return lambda: next(batches)[0]


def _torchvision(case: Case, folder: Path) -> Next:
    transform = _transform(case)
    datasets: Any = optional.load("torchvision.datasets")
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(folder, transform), batch_size=case.dims["B"], shuffle=True, drop_last=True
    )

    def epochs() -> Iterator[Tensor]:
        while True:
            yield from (images for images, _ in loader)

    batches = epochs()
    return lambda: next(batches)


def write_shards(folder: Path, out: Path) -> Path:
    out.mkdir()
    files = sorted(folder.iterdir())
    for i in range(_SHARDS):
        with tarfile.open(out / f"part-{i:04d}.tar", "w") as tar:
            for file in files[i * len(files) // _SHARDS : (i + 1) * len(files) // _SHARDS]:
                tar.add(file, f"{folder.name}/{file.name}")
    return out


def _write_parquet(folder: Path, out: Path) -> Path:
    pa: Any = optional.load("pyarrow")
    files = sorted(folder.iterdir())
    rows = [{"bytes": file.read_bytes(), "path": f"{folder.name}/{file.name}"} for file in files]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    optional.load("pyarrow.parquet").write_table(pa.table({"image": pa.array(rows, kind)}), out, row_group_size=_ROWS)
    return out


register(
    Entry(
        name="sources",
        summary="JPEGs to crops at 224 px from a folder, tar shards and Parquet; webdataset and torchvision.",
        cases=cases,
        measure=measure,
    )
)
