#!/usr/bin/env bash
# vit-pytorch's ViViT, with MoSS and without, drops attention in eval mode too: a video has other logits each time.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from vit_pytorch import vivit, vivit_with_moss

torch.manual_seed(0)
small = {"dim": 32, "spatial_depth": 2, "temporal_depth": 2, "heads": 2, "mlp_dim": 64, "num_classes": 10,
         "dropout": 0.1, "image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2}
video = torch.rand(1, 3, 4, 32, 32)
models = {
    "ViViT": vivit.ViViT(**small),
    "ViViT, its own attention": vivit.ViViT(**small, use_flash_attn=False),
    "ViViT with MoSS": vivit_with_moss.ViViT(**small, pool="mean"),
}
print(f"vit-pytorch {version('vit-pytorch')}, torch {torch.__version__}")
print("expected: in eval mode dropout does nothing, so two calls have the same logits")
for name, model in models.items():
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(video) for _ in range(20)])
    spread = (logits.std(dim=0).mean() / logits.mean(dim=0).std()).item()
    print(f"observed: {name}: 20 calls vary by {spread:.1%} of how much the classes do")
    assert (spread > 0.01) == ("own" not in name), "this has changed"
PYTHON
