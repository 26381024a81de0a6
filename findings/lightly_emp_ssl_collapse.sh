#!/usr/bin/env bash
# lightly's EMP-SSL loss has its total coding rate with the wrong sign: it is lowest where embeddings have collapsed.
set -euo pipefail
exec "$(dirname "$0")/with_packages" lightly==1.6.0 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from lightly.loss import EMPSSLLoss
from torch.nn.functional import normalize

torch.manual_seed(0)
loss_function = EMPSSLLoss()


def share_of_one_direction(embeddings):
    """Return the part of the squares that lies along one direction: 1 where all are one vector or its negative."""
    squares = torch.linalg.svdvals(normalize(embeddings)).square()
    return (squares[0] / squares.sum()).item()


apart, same = normalize(torch.randn(64, 16)), normalize(torch.ones(64, 16))
losses = {name: loss_function([value] * 4).item() for name, value in (("apart", apart), ("the same", same))}

embeddings = torch.nn.Parameter(torch.randn(64, 16))  # of 64 images, each trained freely
before = share_of_one_direction(embeddings.detach())
optimizer = torch.optim.Adam([embeddings], lr=0.05)
for _ in range(400):
    views = [normalize(embeddings + 0.1 * torch.randn_like(embeddings)) for _ in range(4)]
    optimizer.zero_grad()
    loss_function(views).backward()
    optimizer.step()
after = share_of_one_direction(embeddings.detach())
print(f"lightly {version('lightly')}, torch {torch.__version__}")
print("expected: images are spread; the coding rate is to be maximized (Tong et al. 2023), so a loss has it negative")
print("observed: the loss of 64 embeddings that are", ", ".join(f"{name}: {loss:.1f}" for name, loss in losses.items()))
print(f"          400 steps of training: one of 16 directions first has {before:.0%} of the squares, then {after:.0%}")
assert losses["the same"] < losses["apart"], "this has changed"
assert before < 0.2 and after > 0.95, "this has changed"
PYTHON
