#!/usr/bin/env bash
# lightly's pool_masked always takes means, whatever reduce says, and raises for the feature map of one image.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from lightly.models.utils import pool_masked

maps = torch.arange(8.0).reshape(1, 2, 2, 2)  # two channels of 2 x 2
regions = torch.tensor([[[0, 0], [1, 1]]])  # the upper row and the lower one
sums = torch.tensor([[[1.0, 5.0], [9.0, 13.0]]])

found = pool_masked(maps, regions, num_cls=2, reduce="sum")
try:
    raised = None
    pool_masked(maps[0], regions[0], num_cls=2)
except TypeError as error:
    raised = str(error).splitlines()[0]
print(f"lightly {version('lightly')}")
print(f"expected: sums of two regions, {sums.tolist()}; means of one image's [C, H, W] map, as documented")
print(f"observed: {found.tolist()}; {raised}")
assert torch.equal(found, sums / 2) and raised is not None, "this has changed"
PYTHON
