#!/usr/bin/env bash
# Epochs of a fixed number of steps see the same images for ever with accelerate's seedable sampler.
set -euo pipefail
exec "$(dirname "$0")/with_packages" accelerate==1.15.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader


def epochs(loader, steps, count=20):
    """Return the images of each epoch; one ends after some steps, as with an epoch length set by hand."""
    found = []
    for _ in range(count):
        seen = []
        for step, batch in enumerate(loader):
            if step == steps:
                break
            seen += batch.tolist()
        found.append(tuple(seen))
    return found


torch.manual_seed(0)
loader = DataLoader(torch.arange(12), batch_size=2, shuffle=True)
plain = epochs(loader, 3)
seedable = DataLoaderConfiguration(use_seedable_sampler=True)
prepared = Accelerator(cpu=True, dataloader_config=seedable).prepare(loader)
whole, left_early = epochs(prepared, 6), epochs(prepared, 3)
print(f"accelerate {version('accelerate')}, torch {torch.__version__}")
print("expected: every epoch has another order, so 20 epochs of 3 steps, 2 images each, see all 12 images")
for name, found in (("of a plain loader", plain), ("prepared", left_early), ("prepared and whole", whole)):
    images = len({image for epoch in found for image in epoch})
    print(f"observed: 20 epochs {name}: {images} of 12 images, in orders: {len(set(found))}")
assert len(set(plain)) == 20 and len(set(whole)) == 20
assert len(set(left_early)) == 1 and len(set(left_early[0])) == 6, "this has changed"
PYTHON
