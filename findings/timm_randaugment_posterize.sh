#!/usr/bin/env bash
# timm's increasing RandAugment, the default of most fine-tuning recipes, asks Pillow 13 to posterize to 0 bits.
set -euo pipefail
exec "$(dirname "$0")/with_packages" timm==1.0.31 pillow==13.0.0 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
import random
from importlib.metadata import version

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

random.seed(0)
np.random.seed(0)
photograph = Image.fromarray(np.random.randint(0, 256, (64, 64, 3), dtype=np.uint8))


def raised(policy, times=2000):
    """Return how many of the calls raised an error, and the last of them."""
    augment = rand_augment_transform(policy, {"img_mean": (124, 116, 104)})
    errors = []
    for _ in range(times):
        try:
            augment(photograph)
        except ValueError as error:
            errors.append(error)
    return len(errors), errors[-1] if errors else None


print(f"timm {version('timm')}, Pillow {version('pillow')}")
print("expected: 0 of 2000 images of the policy rand-m9-mstd0.5-inc1 raise an error")
count, error = raised("rand-m9-mstd0.5-inc1")
print(f"observed: {count} of 2000 raise: {error}")
capped, _ = raised("rand-m9-mstd0.5-mmax9-inc1")
print(f"with the magnitude capped at 9 (mmax9): {capped} of 2000")
assert count > 0 and "bits" in str(error) and capped == 0, "this has changed"
PYTHON
