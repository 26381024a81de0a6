#!/usr/bin/env bash
# vit-pytorch's MAE and SimMIM fail with the encoder of its own README: its position table has lost a dimension.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from vit_pytorch import ViT
from vit_pytorch.mae import MAE
from vit_pytorch.simmim import SimMIM


def raised(wrapper, **options):
    """Return what one training step of a wrapped encoder raises, if anything."""
    encoder = ViT(image_size=64, patch_size=16, num_classes=10, dim=32, depth=1, heads=2, mlp_dim=64)
    try:
        wrapper(encoder=encoder, masking_ratio=0.5, **options)(torch.rand(2, 3, 64, 64)).backward()
    except RuntimeError as error:
        return error
    return None


found = {MAE: raised(MAE, decoder_dim=32, decoder_depth=1), SimMIM: raised(SimMIM)}
print(f"vit-pytorch {version('vit-pytorch')}")
print("expected: a loss and its gradient, as in the README")
for wrapper, error in found.items():
    print(f"observed: {wrapper.__name__}: {error}")
assert all(error is not None for error in found.values()), "this has changed"
assert ViT(image_size=64, patch_size=16, num_classes=10, dim=32, depth=1, heads=2, mlp_dim=64).pos_embedding.ndim == 2
PYTHON
