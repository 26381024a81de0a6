#!/usr/bin/env bash
# lightly's MMCR loss does not project onto the unit sphere, so it has no minimum: longer embeddings are always better.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from lightly.loss import MMCRLoss
from lightly.models.modules.heads import MMCRProjectionHead

torch.manual_seed(0)
loss_function = MMCRLoss()
embeddings = torch.randn(16, 2, 8)  # of two views of 16 images
scaled = {factor: loss_function(factor * embeddings, factor * embeddings).item() for factor in (1, 10, 100)}

head = MMCRProjectionHead(input_dim=32, hidden_dim=64, output_dim=8)
optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
features, losses, lengths = torch.randn(32, 32), [], []
for _ in range(200):
    projected = head(features).reshape(16, 2, 8)
    loss = loss_function(projected, projected.detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    lengths.append(projected.norm(dim=-1).mean().item())
print(f"lightly {version('lightly')}, torch {torch.__version__}")
print("expected: the length of an embedding does not matter, as all lie on the unit sphere (Yerxa et al. 2023, section 3)")
print(f"observed: the loss of embeddings times {', times '.join(f'{factor}: {loss:.0f}' for factor, loss in scaled.items())}")
shown = ", ".join(f"{lengths[step]:.1f} ({losses[step]:.0f})" for step in (0, 49, 99, 149, 199))
print(f"          mean lengths, and losses, in 200 steps of lightly's own projection head: {shown}")
assert all(abs(loss / factor / scaled[1] - 1) < 1e-3 for factor, loss in scaled.items()), "this has changed"
assert lengths[-1] > lengths[149] > lengths[99] > 5 * lengths[0], "this has changed"
PYTHON
