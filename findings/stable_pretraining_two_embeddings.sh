#!/usr/bin/env bash
# An online probe of stable-pretraining's SimMIM or MaskFeat learns from patch tokens, and is tested on class tokens.
set -euo pipefail
exec "$(dirname "$0")/with_packages" \
  stable-pretraining==0.1.8 timm==1.0.31 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
import timm
import torch
from stable_pretraining import __version__
from stable_pretraining.methods.maskfeat import MaskFeat
from stable_pretraining.methods.simmim import SimMIM
from torch.nn.functional import cosine_similarity

torch.manual_seed(0)
images = torch.randn(8, 3, 64, 64)
print(f"stable-pretraining {__version__}, timm {timm.__version__}, torch {torch.__version__}")
print("expected: the output `embedding`, which probes read, is the same quantity in training and validation")
for kind in (SimMIM, MaskFeat):
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    method = kind(encoder, patch_size=16, image_size=64, mask_ratio=0.06)  # one patch of 16
    with torch.no_grad():
        training, validation = method.train()(images).embedding, method.eval()(images).embedding
        tokens = encoder.forward_features(images)
    mean = cosine_similarity(training, tokens[:, 1:].mean(dim=1)).mean().item()
    between = cosine_similarity(training, validation).mean().item()
    print(f"observed: {kind.__name__} returns patch tokens' mean in training (cosine {mean:.2f} to that of all patches),")
    print(f"          in validation the class token; between the two {between:.2f}")
    assert mean > 0.9
    assert torch.equal(validation, tokens[:, 0]) and between < 0.8, "this has changed"
PYTHON
