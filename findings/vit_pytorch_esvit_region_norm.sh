#!/usr/bin/env bash
# EsViT of vit-pytorch normalizes each feature over the regions, not each region: one changes what the others are taken for.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from torch import nn
from vit_pytorch.es_vit import NetWrapper

torch.manual_seed(0)
patches = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Identity(), nn.Flatten())  # each region is seen by itself
network = NetWrapper(patches, output_dim=16, projection_hidden_size=32, projection_num_layers=2, layer=1)
images = torch.rand(2, 3, 16, 16)
changed = images.clone()
changed[:, :, :4, :4] += 1  # the first of 16 regions
with torch.no_grad():
    network(images)  # makes its two projectors
    of_images, of_changed = network(images), network(changed)
    norm = next(module for module in network.region_projector.net if "Norm" in type(module).__name__)
    normalized = norm(torch.randn(2, 16, 32))

apart = {name: (one - other)[:, 1:].abs().max().item()
         for name, one, other in zip(("view", "region", "latent"), of_images, of_changed) if name != "view"}
print(f"vit-pytorch {version('vit-pytorch')}, torch {torch.__version__}")
print("expected: a projector maps each region on its own, by way of the unit sphere, as DINO's does each view")
print(f"observed: where only the first region changes, the features of the 15 others change by {apart['latent']:.3f},")
print(f"          and their logits by {apart['region']:.3f}")
print(f"          lengths of a region that is normalized: {normalized.norm(dim=2).flatten()[:4].tolist()},")
print(f"          of a feature over the 16 regions: {normalized.norm(dim=1).flatten()[:4].tolist()}")
assert apart["latent"] == 0 and apart["region"] > 0.01, "this has changed"
assert torch.allclose(normalized.norm(dim=1), torch.ones(2, 32)), "this has changed"
PYTHON
