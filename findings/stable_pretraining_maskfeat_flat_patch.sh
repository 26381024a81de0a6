#!/usr/bin/env bash
# stable-pretraining's MaskFeat describes a patch of one color as an edge, as strong as that of any other patch.
set -euo pipefail
exec "$(dirname "$0")/with_packages" \
  stable-pretraining==0.1.8 timm==1.0.31 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
import timm
import torch
from stable_pretraining import __version__
from stable_pretraining.methods.maskfeat import MaskFeat

torch.manual_seed(0)
encoder = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=0)
method = MaskFeat(encoder, patch_size=16, image_size=48).train()
flat = torch.full((1, 3, 48, 48), 0.5)
edge = flat.clone()
edge[..., 24:] = 1.0  # a vertical edge through the patch in the middle
targets = [method(images).targets[0, 4, :9] for images in (flat, edge)]  # of that patch and the first color
print(f"stable-pretraining {__version__}, torch {torch.__version__}")
print("expected: a histogram of gradients that are all zero is zero, as in the paper (arXiv:2112.09133)")
print(f"observed: for one color   {[round(value, 2) for value in targets[0].tolist()]}")
print(f"          for a real edge {[round(value, 2) for value in targets[1].tolist()]}")
assert targets[1][0] > 2
assert (targets[0] - targets[1]).abs().max() < 0.01, "this has changed"
PYTHON
