#!/usr/bin/env bash
# By default x-transformers' masked token model is trained away from its tokens: the weights of its loss are negative.
set -euo pipefail
exec "$(dirname "$0")/with_packages" x-transformers==2.31.10 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import random
from importlib.metadata import version

import torch
from x_transformers import Encoder, NonAutoregressiveWrapper, TransformerWrapper

MASK = 8
tokens = torch.arange(8).expand(32, 8)  # the token at each place is always the same one of 8


def trained(**options):
    """Return the losses of 60 steps, and then the mean probability of the right token where all are masked."""
    random.seed(0)
    torch.manual_seed(0)
    layers = Encoder(dim=16, depth=1, heads=2)
    network = TransformerWrapper(num_tokens=9, logits_dim=8, max_seq_len=8, attn_layers=layers)
    model = NonAutoregressiveWrapper(network, mask_id=MASK, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = model(tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = network(torch.full((1, 8), MASK)).softmax(dim=-1)[0].diagonal()
    return losses, right.mean().item()


print(f"x-transformers {version('x-transformers')}, torch {torch.__version__}")
print("expected: the loss of masked tokens falls to 0, and the right token becomes likelier than by chance, 12.5%")
found = {"by default": trained(), "use_simple_mdlm_loss_weight=False": trained(use_simple_mdlm_loss_weight=False)}
for name, (losses, right) in found.items():
    print(f"observed: {name}: from a loss of {losses[0]:.1f} to {losses[-1]:.1f}; the right token has {right:.1%}")
print("          (equation 10 of Sahoo et al. 2024 weights log-likelihoods so, and here it weights their negative)")
(losses, right), (plain_losses, plain_right) = found.values()
assert min(plain_losses) > 0 and plain_right > 0.5
assert max(losses) < 0 and right < 0.05, "this has changed"
PYTHON
