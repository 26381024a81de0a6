#!/usr/bin/env bash
# One batch without a masked patch, which lightly's own block masks make, turns all later iBOT losses of a run into NaN.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
import random
from importlib.metadata import version

import torch
from lightly.loss import IBOTPatchLoss
from lightly.models.utils import random_block_mask

random.seed(0)
torch.manual_seed(0)
loss_function = IBOTPatchLoss(output_dim=8)
losses = []
for batch_size in (8, 8, 1, 8, 8):  # the third is the rest of an epoch
    mask = random_block_mask((batch_size, 14, 14))  # masks int(0.5 * batch_size) of the images
    patches = torch.randn(int(mask.sum()), 8)
    losses.append((batch_size, len(patches), loss_function(patches, patches, mask).item()))
print(f"lightly {version('lightly')}, torch {torch.__version__}")
print("expected: a batch without a masked patch has a loss of 0 (its count is clamped to 1), and leaves the center")
for batch_size, num_masked, loss in losses:
    print(f"observed: {batch_size} images, {num_masked} masked patches: a loss of {loss:.3f}")
print(f"          the center, a buffer that checkpoints keep: {loss_function.center.value[0, :3].tolist()}...")
found = [loss == loss for _, _, loss in losses]
assert losses[2][1:] == (0, 0.0), "this has changed"
assert found == [True, True, True, False, False] and loss_function.center.value.isnan().all(), "this has changed"
PYTHON
