#!/usr/bin/env bash
# By default the logits of vit-pytorch's ViViT with MoSS do not depend on the video: its class token sees itself alone.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from vit_pytorch.vivit_with_moss import ViViT

torch.manual_seed(0)
small = {"dim": 32, "spatial_depth": 2, "temporal_depth": 2, "heads": 2, "mlp_dim": 64, "num_classes": 10,
         "image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2}


def seen(**options):
    """Return how far the logits of two videos are apart, and how many parameters of the patches have a gradient."""
    model = ViViT(**small, **options)
    logits = model(torch.rand(2, 3, 4, 32, 32))
    logits.square().sum().backward()
    patches = [parameter.grad for parameter in model.to_patch_embedding.parameters()]
    return (logits[0] - logits[1]).abs().max().item(), sum(bool(grad.any()) for grad in patches), len(patches)


found = {"by default": seen(), "moss_causal=False": seen(moss_causal=False), "pool='mean'": seen(pool="mean")}
print(f"vit-pytorch {version('vit-pytorch')}, torch {torch.__version__}")
print("expected: two videos have other logits, and every parameter of the patch embedding a gradient")
for name, (apart, trained, count) in found.items():
    print(f"observed: {name}: logits differ by up to {apart:.3f}; {trained} of {count} parameters have a gradient")
print("          (the class token is the first token of a causal transformer, before all frames)")
assert found.pop("by default")[:2] == (0, 0), "this has changed"
assert all(apart > 0 and trained == count for apart, trained, count in found.values())
PYTHON
