"""restore_tokens against the usual form and the best of plain torch, on what a decoder takes at 224 px, 75 % hidden.

Bytes: forward reads the visible rows and writes all of [B, N, D]; backward reads that and writes the visible rows.
Positions and mask token stay in the caches.
"""

import pytest
import torch

from bimkern.ops import restore_tokens

B, N, K = 64, 196, 49
WIDTHS = (512, 768)


def concatenate_and_gather(visible, keep, mask_token, pos, ids_restore):
    """As MAE programs do it: append mask tokens, then un-shuffle."""
    tokens = torch.cat([visible, mask_token.expand(B, N - K, -1)], dim=1)
    return tokens.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, visible.shape[-1])) + pos


def index_put(visible, keep, mask_token, pos, ids_restore):
    images = torch.arange(B, device=keep.device)[:, None]
    tokens = (mask_token + pos).expand(B, -1, -1).clone()
    return tokens.index_put_((images, keep), visible + pos[keep])


def index_put_then_add(visible, keep, mask_token, pos, ids_restore):
    images = torch.arange(B, device=keep.device)[:, None]
    return mask_token.expand(B, N, -1).clone().index_put_((images, keep), visible) + pos


def scatter(visible, keep, mask_token, pos, ids_restore):
    index = keep.unsqueeze(-1).expand_as(visible)
    return mask_token.expand(B, N, -1).scatter(1, index, visible) + pos


def ours(visible, keep, mask_token, pos, ids_restore):
    return restore_tokens(visible, keep, mask_token, pos, num_tokens=N)


PROVIDERS = {
    "ours": ours,
    "cat + gather": concatenate_and_gather,
    "index_put": index_put,
    "index_put, then add": index_put_then_add,
    "scatter": scatter,
}


def whole_numbers(*shape):
    """Numbers whose sums are exact, so that every provider must give the same."""
    return torch.randint(-9, 9, shape).float()


def inputs(D, pos_grad):
    order = torch.rand(B, N).argsort(dim=1)
    keep = order[:, :K].sort(dim=1).values
    ids_restore = torch.cat([keep, order[:, K:]], dim=1).argsort(dim=1)
    visible, mask_token = whole_numbers(B, K, D).requires_grad_(), whole_numbers(D).requires_grad_()
    pos = whole_numbers(N, D).requires_grad_(pos_grad)
    return (visible, keep, mask_token, pos, ids_restore), whole_numbers(B, N, D)


def forward(provider, arguments, grad):
    with torch.no_grad():
        return (provider(*arguments),)


def forward_backward(provider, arguments, grad):
    leaves = [x for x in arguments if x.requires_grad]
    return torch.autograd.grad(provider(*arguments), leaves, grad)


PASSES = {"fwd": forward, "fwd+bwd": forward_backward}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("pos_grad", [True, False], ids=["learned pos", "fixed pos"])
@pytest.mark.parametrize("step", PASSES)
@pytest.mark.parametrize("D", WIDTHS)
def test_restore_tokens(benchmark, D, step, pos_grad, provider):
    run, (arguments, grad) = PASSES[step], inputs(D, pos_grad)
    got, want = run(PROVIDERS[provider], arguments, grad), run(scatter, arguments, grad)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    moved = (B * N * D + B * K * D) * 4 * len(step.split("+"))
    benchmark.group = f"restore_tokens {step} float32 B={B} N={N} K={K} D={D}, {'learned' if pos_grad else 'fixed'} pos"
    benchmark.pedantic(run, (PROVIDERS[provider], arguments, grad), rounds=50, warmup_rounds=5)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["GB/s"] = moved / benchmark.stats.stats.median / 1e9
