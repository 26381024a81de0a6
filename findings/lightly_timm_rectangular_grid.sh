#!/usr/bin/env bash
# lightly's masked ViT takes 2 x 8 patches for 4 x 4: of rectangles it reads the wrong positions, and says nothing.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch

import timm
from lightly.models.modules import MaskedVisionTransformerTIMM

torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=2, dynamic_img_size=True).eval()
torch.nn.init.normal_(vit.pos_embed)
masked = MaskedVisionTransformerTIMM(vit, weight_initialization="skip", pos_embed_initialization="skip").eval()


def compared(height, width):
    """Return how far the tokens of a picture, of which none is masked, are apart with and without lightly."""
    images = torch.rand(1, 3, 16 * height, 16 * width)
    with torch.no_grad():
        try:
            return (masked.encode(images) - vit.forward_features(images)).abs().max().item()
        except RuntimeError as error:
            return str(error)


print(f"lightly {version('lightly')}, timm {version('timm')}")
print("expected: with no token masked the tokens of timm's own ViT, which takes rectangles with dynamic_img_size")
found = {(height, width): compared(height, width) for height, width in ((4, 4), (6, 6), (2, 8), (3, 12), (4, 6))}
for (height, width), apart in found.items():
    apart = apart if isinstance(apart, str) else f"tokens differ by up to {apart:.2f}"
    print(f"observed: {height} x {width} patches: {apart}")
assert found[4, 4] < 1e-4 and found[6, 6] < 1e-4
assert found[2, 8] > 0.5 and found[3, 12] > 0.5, "this has changed"
assert isinstance(found[4, 6], str), "this has changed"
PYTHON
