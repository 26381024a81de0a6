"""Reading JPEGs that are not in memory: from tar shards, and from a folder of the same files.

Nothing is decoded, which would take most of the time, and each turn reads other images. Before it, their pages are
dropped; what the kernel knows of the files, their inodes, stays. So --process-time has no meaning here.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import numpy as np
import torch

from bench.entries.loaders import write_photographs
from bench.entries.sources import write_shards
from bench.entry import Case, Entry, Measure, register
from bench.page_cache import NotDropped, drop
from bench.refcheck import WrongResult
from bimkern.data.listing import Listing, list_images
from bimkern.data.source import open_in, read_ahead
from bimkern.data.sources.find import find_source

_RANDOM, _SORTED = "random", "sorted"
_SEED = 0


def cases(device: torch.device, quick: bool) -> Iterable[Case]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe").write_bytes(b"x")
        try:
            drop([Path(folder) / "probe"])
        except NotDropped as reason:
            print(f"cold_sources: left out, as files cannot be dropped from memory: {reason}", file=sys.stderr)
            return
    for order in (_RANDOM, _SORTED):
        dims = {"B": 8 if quick else 64, "from": "500x375", "order": order}
        yield Case(device=device, dims=dims, dtype="uint8", pass_name="load")


def measure(case: Case) -> Measure:
    root = tempfile.TemporaryDirectory()
    folder = Path(root.name, "all", "class")
    folder.mkdir(parents=True)
    write_photographs(folder)
    shards = write_shards(folder, Path(root.name, "shards"))
    places = {"shards": shards, "folder": folder.parent}
    runs = {name: _reader(case, list_images(find_source(place)), root) for name, place in places.items()}
    files = {name: [path for path in place.rglob("*") if path.is_file()] for name, place in places.items()}
    return Measure(
        ours=runs["shards"],
        label="shards",
        rivals={"folder": runs["folder"]},
        before={name: lambda name=name: drop(files[name]) for name in places},  # type: ignore[misc]
        check=_check,
        items=case.dims["B"],
    )


def _reader(case: Case, listing: Listing, root: object) -> Callable[[], list[bytes]]:
    """Return what reads other images at each call, the same at the same call of every provider."""
    turns = count()

    def read(root: object = root) -> list[bytes]:  # the files are deleted with the last reference
        B, turn = case.dims["B"], next(turns)
        if case.dims["order"] == _RANDOM:
            ids = np.random.default_rng((_SEED, turn)).permutation(len(listing))[:B]
        else:
            ids = (np.arange(B) + turn * B) % len(listing)
        contents = []
        files = [listing.files[i] for i in ids.tolist()]
        read_ahead(listing.source, files)  # as loaders do
        for name in files:
            with open_in(listing.source, name) as file:
                contents.append(file.read())
        return contents

    return read


def _check(provider: str, got: list[bytes], expected: list[bytes]) -> None:
    if len(got) != len(expected) or not all(one.startswith(b"\xff\xd8") for one in got):
        raise WrongResult(f"{provider}: read {len(got)} files, not {len(expected)} JPEGs")


register(
    Entry(
        name="cold_sources",
        summary="Reading JPEGs that are not in memory, in random order and sorted: tar shards and a folder.",
        cases=cases,
        measure=measure,
    )
)
