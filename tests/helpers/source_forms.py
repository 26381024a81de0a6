"""One set of images in all the forms that --data takes, and what a run reads of them."""

import tarfile
from io import BytesIO

import numpy as np
import torch
from bad_files import picture

from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.listing import list_images
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.step_layout import StepLayout

CLASSES = ("ant", "bee")


def write_folder(root):
    """Write twelve images in two class folders, of several formats and sizes; return the folder."""
    for i in range(12):
        path = root / CLASSES[i % 2] / f"{i:02d}.{('jpg', 'png', 'webp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(30 + i, 24, seed=i).save(path)
    (root / CLASSES[0] / "note.txt").write_text("not an image")
    return root


def files_of(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def add(tar, name, content=b"", **fields):
    """Add a member to an open tar file; return the offset of its header."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    offset = tar.offset
    tar.addfile(member, BytesIO(content))
    return offset


def write_tars(root, out, count=3, **options):
    """Write the files of a folder into shards, in an order that is not theirs; return the shards."""
    out.mkdir(parents=True, exist_ok=True)
    files = files_of(root)
    order = np.random.default_rng(0).permutation(len(files))
    shards = []
    for number, chosen in enumerate(np.array_split(order, count)):
        shards.append(out / f"part-{number:04d}.tar")
        with tarfile.open(shards[-1], "w", **options) as tar:
            for i in chosen:
                add(tar, files[i].relative_to(root).as_posix(), files[i].read_bytes())
    return shards


def data_of(source, batch_size=5, **changes):
    """Return the micro-batches of a source, checked as a run does it."""
    listing = list_images(source)
    images = readable(listing, check(listing, workers=0))
    layout = StepLayout.uniform(image_size=16, batch_size=batch_size, micro_batch=batch_size, num_steps=8)
    return MicroBatches(**{"images": images, "augment": RandomResizedCrop(), "seed": 3, "layout": layout} | changes)


def batches_of(loader, data, first=0, last=8):
    """Return steps of a run, as it reads them when it begins or resumes at the first."""
    steps = ResilientLoader(loader, data, lambda faults, step: None).steps(first, last)
    return [batch for step in steps for batch in step]


def same(ours, theirs):
    """Return whether batches are equal bit for bit."""
    return len(ours) == len(theirs) and all(
        torch.equal(getattr(one, name), getattr(other, name))
        for one, other in zip(ours, theirs, strict=True)
        for name in ("images", "draw_ids", "sample_ids")
    )
