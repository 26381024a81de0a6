#!/usr/bin/env bash
# lightly's masked ViT fails by default with those of timm whose position table leaves the class token out.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch

import timm
from lightly.models.modules import MaskedVisionTransformerTIMM


def encoded(name, **options):
    """Return the shape of the tokens that a masked ViT of timm puts out, or what it raises."""
    vit = timm.create_model(name, img_size=64, num_classes=0, depth=1)
    try:
        return tuple(MaskedVisionTransformerTIMM(vit, **options).encode(torch.rand(1, 3, 64, 64)).shape)
    except RuntimeError as error:
        return str(error)


plain = "vit_tiny_patch16_224"
name = "vit_medium_patch16_reg4_gap_256"  # registers, which the table has no rows for
found = {"sincos, the default": encoded(name), "skip": encoded(name, pos_embed_initialization="skip")}
print(f"lightly {version('lightly')}, timm {version('timm')}")
print(f"expected: {name} encodes 4 registers and 16 patches with either table, as {plain} does {encoded(plain)}")
for table, what in found.items():
    print(f"observed: {table}: {what}")
assert isinstance(found["sincos, the default"], str) and found["skip"] == (1, 20, 512), "this has changed"
PYTHON
