#!/usr/bin/env bash
# LeVJEPA of vit-pytorch pulls different videos together: it lays out the views by kind, and groups them as if by video.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from torch import nn
from vit_pytorch.levjepa import LeVJEPA


class MeanColor(nn.Module):
    """An encoder that every view of a video of one color gives the same embedding."""

    dim = 3

    def forward(self, video, drop_ratio=None):
        return video.mean(dim=(2, 3, 4))[:, None]


def invariance_loss(colors, num_local_views):
    """Return the loss of videos of one color each, between whose views no augmentation makes a difference."""
    learner = LeVJEPA(MeanColor(), image_size=16, local_size=16, num_local_views=num_local_views,
                      local_augment_fn=nn.Identity(), global_augment_fn=nn.Identity())
    learner.projector = nn.Identity()
    video = torch.tensor(colors)[:, None, None, None, None].expand(-1, 3, 2, 32, 32).contiguous()
    _, losses = learner(video, return_loss_breakdown=True)
    return losses.invariance_loss.item()


print(f"vit-pytorch {version('vit-pytorch')}, torch {torch.__version__}")
print("expected: an invariance loss of 0, since all views of a video have the same embedding")
for colors in ([0.7], [0.2, 0.2], [0.2, 0.7], [0.0, 0.3, 0.6, 0.9]):
    found = [invariance_loss(colors, num_local_views) for num_local_views in (1, 4)]
    print(f"observed: videos of the colors {colors}: {found[0]:.4f} with 1 local view, {found[1]:.4f} with 4")
    for loss in found:
        assert (loss > 0.005) == (len(set(colors)) > 1), "this has changed"
        assert loss > 0.005 or loss < 1e-8
PYTHON
