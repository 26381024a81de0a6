#!/usr/bin/env bash
# lightly's groups leave LayerNorm without weight decay, but pull the scales of RMSNorm to 0: it is no norm to them.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch

import timm
from lightly.models.utils import get_weight_decay_parameters


def decayed(norm_layer):
    """Return how many of a ViT's scales of norms are among the parameters with weight decay, and how many it has."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=2, norm_layer=norm_layer)
    scales = {id(module.weight) for module in vit.modules() if isinstance(module, norm_layer)}
    with_decay, _ = get_weight_decay_parameters([vit])  # decay_norm=False is the default
    return sum(id(parameter) in scales for parameter in with_decay), len(scales)


print(f"lightly {version('lightly')}, timm {version('timm')}, torch {torch.__version__}")
print('expected: no decay ("decay_norm: If True, normalization parameters are decayed", which it is not by default)')
for norm_layer in (torch.nn.LayerNorm, torch.nn.RMSNorm, timm.layers.RmsNorm):
    found, count = decayed(norm_layer)
    print(f"observed: {norm_layer.__module__}.{norm_layer.__name__}: {found} of {count} scales are decayed")
    assert count == 5
    assert found == (0 if norm_layer is torch.nn.LayerNorm else count), "this has changed"
PYTHON
