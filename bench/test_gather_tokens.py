"""gather_tokens against the two usual forms, on what a ViT-B/16 gathers at 224 px with 75 % hidden.

Bytes: forward reads and writes the kept rows; backward reads them and writes all of [B, N, D].
"""

import pytest
import torch

from bimkern.ops import gather_tokens

B, N, K, D = 64, 196, 49, 768
BYTES = {"fwd": 2 * B * K * D * 4, "fwd+bwd": 3 * B * K * D * 4 + B * N * D * 4}


def torch_gather(tokens, keep):
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def row_index(tokens, keep):
    return tokens[torch.arange(len(keep), device=keep.device)[:, None], keep]


PROVIDERS = {"ours": gather_tokens, "torch.gather": torch_gather, "row index": row_index}


@pytest.fixture(scope="module")
def inputs():
    tokens = torch.randn(B, N, D, requires_grad=True)
    keep = torch.rand(B, N).argsort(dim=1)[:, :K].sort(dim=1).values
    return tokens, keep, torch.randn(B, K, D)


def forward(provider, tokens, keep, grad):
    with torch.no_grad():
        return provider(tokens, keep)


def forward_backward(provider, tokens, keep, grad):
    return torch.autograd.grad(provider(tokens, keep), tokens, grad)[0]


PASSES = {"fwd": forward, "fwd+bwd": forward_backward}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("step", PASSES)
def test_gather_tokens(benchmark, inputs, step, provider):
    run = PASSES[step]
    assert torch.equal(run(PROVIDERS[provider], *inputs), run(torch_gather, *inputs))
    benchmark.group = f"gather_tokens {step} float32 B={B} N={N} K={K} D={D}"
    benchmark.pedantic(run, (PROVIDERS[provider], *inputs), rounds=50, warmup_rounds=5)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["GB/s"] = BYTES[step] / benchmark.stats.stats.median / 1e9
