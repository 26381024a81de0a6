#!/usr/bin/env bash
# lightly's linear drop path gives the largest rate to every layer but the first: what it computes for each is not used.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import timm
from lightly.models.utils import update_drop_path_rate


def rates(**options):
    """Return a ViT of six layers and the rates at which it drops their paths."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=6, **options)
    return model, lambda: [round(float(getattr(layer.drop_path1, "drop_prob", 0)), 2) for layer in model.blocks]


_, of_timm = rates(drop_path_rate=0.5)
model, of_lightly = rates()
update_drop_path_rate(model, 0.5, mode="linear")
print(f"lightly {version('lightly')}, timm {version('timm')}")
print(f"expected: {of_timm()} (\"Linear increases the drop path rate from 0 to drop_path_rate over the depth\")")
print(f"observed: {of_lightly()}, which drops {sum(of_lightly()) / sum(of_timm()):.2f} times as many paths")
assert of_timm() == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
assert of_lightly() == [0, 0.5, 0.5, 0.5, 0.5, 0.5], "this has changed"
PYTHON
