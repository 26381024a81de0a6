#!/usr/bin/env bash
# vit-pytorch's SimMIM divides its loss by the number of masked patches twice: the more are masked, the smaller it is.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from torch import nn
from vit_pytorch import ViT
from vit_pytorch.simmim import SimMIM


def loss_where_every_value_is_off_by_one(masking_ratio):
    """Return the loss of black images of which 1 is predicted everywhere."""
    encoder = ViT(image_size=64, patch_size=8, num_classes=2, dim=16, depth=1, heads=1, mlp_dim=16)
    encoder.pos_embedding = nn.Parameter(encoder.pos_embedding[None])  # the shape that SimMIM reads
    model = SimMIM(encoder=encoder, masking_ratio=masking_ratio)
    nn.init.zeros_(model.to_pixels.weight)
    nn.init.ones_(model.to_pixels.bias)
    return model(torch.zeros(2, 3, 64, 64)).item()


print(f"vit-pytorch {version('vit-pytorch')}")
print("expected: the sum of errors over the number of masked pixels (Xie et al. 2022, section 3.4), so 1 at any ratio")
found = {num_masked: loss_where_every_value_is_off_by_one(num_masked / 64) for num_masked in (1, 16, 32)}
for num_masked, loss in found.items():
    print(f"observed: {loss:.5f} where {num_masked} of 64 patches are masked, which is 1 / {1 / loss:.0f}")
assert all(abs(loss * num_masked - 1) < 1e-5 for num_masked, loss in found.items()), "this has changed"
PYTHON
