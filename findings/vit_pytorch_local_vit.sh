#!/usr/bin/env bash
# vit-pytorch's LocalViT fails for nearly every image: it normalizes columns of a feature map in the place of channels.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from vit_pytorch.local_vit import LocalViT


def logits(dim, patches):
    """Return the logits of an image of so many patches a side, or what it raises."""
    model = LocalViT(image_size=8 * patches, patch_size=8, num_classes=2, dim=dim, depth=1, heads=2, mlp_dim=64)
    try:
        return model(torch.rand(1, 3, 8 * patches, 8 * patches))
    except RuntimeError as error:
        return str(error)


print(f"vit-pytorch {version('vit-pytorch')}, torch {torch.__version__}")
print("expected: logits of any image whose sides are multiples of a patch")
for dim, patches in ((16, 4), (64, 8), (192, 14)):
    found = logits(dim, patches)
    print(f"observed: {patches} x {patches} patches, width {dim}: {found}")
    assert isinstance(found, str), "this has changed"
print(f"          only as many channels as columns pass: 16 x 16 patches, width 16: {tuple(logits(16, 16).shape)}")
PYTHON
