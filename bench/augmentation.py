"""`python -m bench.augmentation`: JPEGs to augmented, normalized crops at 224 px, against timm's transform, in turns.

Both do the same in this process: random resized crop, flip, RandAugment, normalization, random erasing. It counts the
CPU time of the process, so that other work on the machine does not matter.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bench.entries.loaders import write_photographs
from bimkern import optional
from bimkern.data import pil
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.listing import list_images
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.step_layout import StepLayout
from bimkern.data.training_augment import TrainingAugment
from bimkern.image_size import IMAGENET_SIZE
from bimkern.mim.model import IMAGENET_STD
from bimkern.mim.targets import Colors

_SIZE, _BATCH, _ROUNDS = IMAGENET_SIZE, 32, 15
_AUGMENT = TrainingAugment()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder))
        listing = list_images(ImageFolder(paths=(Path(folder),)))
        layout = StepLayout.uniform(image_size=_SIZE, batch_size=_BATCH, micro_batch=_BATCH)
        data = MicroBatches(
            images=readable(listing, check(listing, workers=0)), augment=_AUGMENT, seed=0, layout=layout
        )
        colors = Colors(torch.tensor(_AUGMENT.mean), torch.tensor(IMAGENET_STD))
        providers: dict[str, Callable[[int], Tensor]] = {
            "ours": partial(_ours, data, colors),
            "timm": partial(_timm, data, _timm_transform()),
        }
        times = {name: list[float]() for name in providers}
        for batch in range(_ROUNDS):
            for name, load in providers.items():
                began = time.process_time()
                assert load(batch).shape == (_BATCH, 3, _SIZE, _SIZE)
                times[name].append(time.process_time() - began)
    rates = {name: _BATCH / statistics.median(values[1:]) for name, values in times.items()}
    text = ", ".join(f"{name} {rate:.0f} images/s" for name, rate in rates.items())
    print(f"{len(listing)} photographs of 500 x 375: {text}, {rates['ours'] / rates['timm']:.2f}x")


def _ours(data: MicroBatches, colors: Colors, index: int) -> Tensor:
    batch = pil.decode(data, index)
    return _AUGMENT.erase(colors.normalize(batch.images), batch.draw_ids, seed=data.seed)


def _timm(data: MicroBatches, transform: Callable[[Image.Image], Tensor], index: int) -> Tensor:
    pixels = []
    for sample_id in data[index].sample_ids.tolist():
        with Image.open(data.images.path(sample_id)) as image:
            pixels.append(transform(image.convert("RGB")))
    return torch.stack(pixels)


def _timm_transform() -> Callable[[Image.Image], Tensor]:
    timm = optional.load_timm("the rival is timm")
    return timm.data.create_transform(
        _SIZE,
        is_training=True,
        auto_augment=f"{_AUGMENT.rand_augment}-mmax9",  # at magnitude 10, timm asks for what Pillow 13 refuses
        interpolation=_AUGMENT.interpolation,
        re_prob=_AUGMENT.erase_prob,
        re_mode="pixel",
    )


if __name__ == "__main__":
    main()
