"""The image check on 10^4 JPEGs of 500 x 375, in two processes: fresh, cached, and against bare decoding.

Bare decoding is the ceiling: PIL's Image.open(path).convert("RGB") on as many processes, and nothing else.
"""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bimkern.data.check import check
from bimkern.data.decoding import decode_file
from bimkern.data.demo import demo_images
from bimkern.data.listing import Listing, list_images
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.files.cache import cache_folder

FILES, WORKERS = 10_000, 2
WIDTH, HEIGHT = 500, 375


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listing]:
    with pytest.MonkeyPatch.context() as patch:
        photographs = list_images(demo_images())
        folder = tmp_path_factory.mktemp("photographs")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for i, file in enumerate(photographs.files):
            photograph = decode_file(photographs.source.paths[0] / file).pixels
            image = photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            image.save(folder / f"{i}.jpg", quality=90)
        for i in range(len(photographs), FILES):
            os.link(folder / f"{i % len(photographs)}.jpg", folder / f"{i}.jpg")
        yield list_images(ImageFolder(paths=(folder,)))


def decode(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB")


def bare(listing: Listing) -> None:
    with multiprocessing.Pool(WORKERS) as pool:
        pool.map(decode, [listing.source.paths[0] / file for file in listing.files], chunksize=32)


def forget() -> None:
    shutil.rmtree(cache_folder(), ignore_errors=True)


@pytest.mark.parametrize("case", ["bare decoding", "checked", "cached"])
def test_image_check(benchmark: Any, listing: Listing, case: str) -> None:
    def run() -> None:
        if case == "bare decoding":
            bare(listing)
        else:
            assert len(check(listing, workers=WORKERS)) == FILES

    if case == "cached":
        run()
    benchmark.group = f"image check, {FILES} JPEGs of {WIDTH}x{HEIGHT}, {WORKERS} processes"
    benchmark.pedantic(run, setup=forget if case == "checked" else None, rounds=3)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["images/s"] = FILES / benchmark.stats.stats.median
