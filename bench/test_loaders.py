"""PIL in two processes against DALI in two threads: the same crops of the same JPEGs, at 224 px.

The photographs are those of the demo, resampled to 500 x 375, the usual size of a photograph in ImageNet.
"""

import pytest
import torch
from PIL import Image

from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.demo import demo_images
from bimkern.data.loader import choose_loader
from bimkern.data.source import image_folder, read_image

WORKERS = 2
BATCH, BATCHES, COPIES = 64, 8, 8  # every photograph is written eight times
WIDTH, HEIGHT = 500, 375


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    photographs, _ = demo_images()
    for i, file in enumerate(photographs.files):
        image = read_image(photographs.root / file).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        for copy in range(COPIES):
            image.save(folder / f"{i}_{copy}.jpg", quality=90)
    augment = RandomResizedCrop()
    listing = image_folder(folder)
    images = readable(listing, check(listing, workers=WORKERS))
    return MicroBatches(images=images, augment=augment, size=224, seed=0, batch_size=BATCH, micro_batch=BATCH)


@pytest.mark.parametrize("name", ["pil", "dali"])
def test_loaders(benchmark, data, name):
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    loader, _ = choose_loader(name, torch.device("cpu"), WORKERS)
    start, later = loader.batches(data, 0, 1), loader.batches(data, 0, 10**6)
    assert torch.equal(next(start).draw_ids, torch.from_numpy(data[0].draw_ids))
    for _ in range(2 * BATCHES):  # more than either prepares ahead
        next(later)

    def load():
        for _ in range(BATCHES):
            next(later)

    benchmark.group = f"loaders, {WORKERS} workers, {WIDTH}x{HEIGHT} JPEG to 224"
    benchmark.pedantic(load, rounds=5)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["images/s"] = BATCH * BATCHES / benchmark.stats.stats.median
