#!/usr/bin/env bash
# stable-pretraining's MultiBlockMasking returns the inverse of the ids_restore that its other maskings return.
set -euo pipefail
exec "$(dirname "$0")/with_packages" \
  stable-pretraining==0.1.8 timm==1.0.31 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
import torch
from stable_pretraining import __version__
from stable_pretraining.backbone.patch_masking import MultiBlockMasking, PatchMasking


def restored(masking):
    """Return the share of tokens that lie where they came from, after mask tokens are appended and all are restored."""
    torch.manual_seed(0)
    tokens = torch.arange(1.0, 37).reshape(1, 36, 1)  # of a grid of 6 x 6
    output = masking.train()(tokens, 6, 6)
    mask_tokens = torch.zeros(1, 36 - output.visible.shape[1], 1)
    whole = torch.cat([output.visible, mask_tokens], dim=1).gather(1, output.ids_restore.unsqueeze(-1))
    return (whole == tokens * (1 - output.mask.unsqueeze(-1))).float().mean().item()


patches, blocks = restored(PatchMasking(mask_ratio=0.5)), restored(MultiBlockMasking(num_targets=2))
print(f"stable-pretraining {__version__}, torch {torch.__version__}")
print('expected: visible tokens and mask tokens, gathered by ids_restore ("to restore original order"), lie in place')
print(f"observed: in place are {patches:.0%} of the tokens of PatchMasking and {blocks:.0%} of those of MultiBlockMasking")
assert patches == 1
assert blocks < 0.7, "this has changed"
PYTHON
