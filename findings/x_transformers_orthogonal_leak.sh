#!/usr/bin/env bash
# Orthogonal updates of x-transformers let causal layers see later tokens: they project a whole sequence as one vector.
set -euo pipefail
exec "$(dirname "$0")/with_packages" x-transformers==2.31.10 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from x_transformers import Decoder, Encoder

torch.manual_seed(0)
tokens = torch.randn(2, 8, 32)
changed = tokens.clone()
changed[:, 6:] = torch.randn(2, 2, 32)  # the last two of 8 tokens
visible = torch.arange(8).expand(2, 8) < 6


def seen(kind, **options):
    """Return how far the outputs of the first six tokens are apart, if only the other two differ."""
    layers = kind(dim=32, depth=2, heads=2, attn_dim_head=16, **options).eval()
    mask = {} if kind is Decoder else {"mask": visible}
    with torch.no_grad():
        return (layers(tokens, **mask) - layers(changed, **mask))[:, :6].abs().max().item()


print(f"x-transformers {version('x-transformers')}, torch {torch.__version__}")
print("expected: a token sees no later one in a Decoder, and none that is masked in an Encoder")
for name in ("none", "gate_residual", "orthog_residual", "attn_orthog_projected_values"):
    options = {} if name == "none" else {name: True}
    found = {kind.__name__: seen(kind, **options) for kind in (Decoder, Encoder)}
    print(f"observed: {name}: outputs change by " + ", ".join(f"{value:.4f} ({kind})" for kind, value in found.items()))
    for value in found.values():
        assert value < 1e-5 if "orthog" not in name else value > 0.005, "this has changed"
PYTHON
