"""Masks of a step against the usual form: noise, argsort, argsort, gather. ViT-B/16 at 224 px with 75 % hidden.

Ours also keeps a draw the same on every device, batch split and resume, which the usual form does not.
"""

import pytest
import torch

from bimkern.ops import keep_to_mask, random_keep
from bimkern.ops.random_keep import random_keep_reference

N, K = 196, 49


def ours(sample_ids):
    keep = random_keep(sample_ids, N, K, seed=0)
    return keep, keep_to_mask(keep, N)


def reference(sample_ids):
    keep = random_keep_reference(sample_ids, N, K, 0)
    return keep, torch.ones(len(keep), N).scatter(1, keep, 0.0)


def argsort_twice(sample_ids):
    shuffle = torch.rand(len(sample_ids), N).argsort(dim=1)
    mask = torch.ones(len(sample_ids), N)
    mask[:, :K] = 0
    return shuffle[:, :K], mask.gather(1, shuffle.argsort(dim=1))


PROVIDERS = {"ours": ours, "reference": reference, "argsort twice": argsort_twice}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("B", [64, 256])
def test_random_keep(benchmark, B, provider):
    sample_ids = torch.arange(B)
    keep, mask = PROVIDERS[provider](sample_ids)
    assert torch.equal(mask, torch.ones(B, N).scatter(1, keep, 0.0))
    if provider != "argsort twice":
        assert torch.equal(keep, ours(sample_ids)[0])
    benchmark.group = f"random_keep + keep_to_mask B={B} N={N} K={K}"
    benchmark.pedantic(PROVIDERS[provider], (sample_ids,), rounds=200, warmup_rounds=20)
