#!/usr/bin/env bash
# x-transformers generates other tokens with its cache, the default, than without it, where its layers shift tokens.
set -euo pipefail
exec "$(dirname "$0")/with_packages" x-transformers==2.31.10 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

prompt = torch.arange(24).reshape(4, 6) % 20


def generated(options, **cache):
    """Return the 16 likeliest tokens after each prompt, and whether the model says that a cache can be used."""
    torch.manual_seed(0)
    layers = Decoder(dim=32, depth=3, heads=4, attn_dim_head=32, **options)
    network = TransformerWrapper(num_tokens=20, max_seq_len=24, attn_layers=layers).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # new models say the same of every prompt
    return AutoregressiveWrapper(network).eval().generate(prompt, 16, temperature=0.0, **cache), network.can_cache_kv


print(f"x-transformers {version('x-transformers')}, torch {torch.__version__}")
print("expected: the same tokens, as with ALiBi and rotary positions; or no cache, as with selective attention")
per_row = {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True}
kinds = {name: {name: True} for name in ("alibi_pos_bias", "rotary_pos_emb", "attn_selective")}
wrong = {"shift_tokens": {"shift_tokens": 1}, "attn_data_dependent_alibi_per_row": per_row}
for name, options in {**kinds, **wrong}.items():
    (cached, can), (plain, _) = generated(options), generated(options, cache_kv=False)
    apart = (cached != plain).float().mean().item()
    print(f"observed: {name}: {apart:.0%} of the tokens are others; the model says that it can be cached: {can}")
    assert can == (name != "attn_selective")
    assert (apart > 0.05) == (name in wrong), "this has changed"
    assert apart == 0 or name in wrong
PYTHON
