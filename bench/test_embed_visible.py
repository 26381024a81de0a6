"""embed_visible against the usual forms and against its bare matrix products, on what a ViT-B/16 embeds at 224 px.

The products are the ceiling: [B*K, C*p*p] rows on the weight forward, and on the gradient backward. uint8 images, cls
token, positions; gradients of weight, bias and cls. All forms normalise; the usual one does so before it convolves.
"""

import pytest
import torch
import torch.nn.functional as F

from bimkern.ops import embed_visible

B, N, K, D, P = 64, 196, 49, 768, 16
FLOPS = {"fwd": 2 * B * K * D * 3 * P * P, "fwd+bwd": 4 * B * K * D * 3 * P * P}


def ours(images, weight, bias, keep, pos, cls, mean, std, dtype):
    return embed_visible(images, weight, bias, keep, pos, prefix=cls, mean=mean, std=std, dtype=dtype)


def normalise(images, mean, std):
    return (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def finish(tokens, pos, cls):
    return torch.cat([cls.expand(B, -1, -1), tokens + pos], dim=1)


def convolve_and_gather(images, weight, bias, keep, pos, cls, mean, std, dtype):
    pixels = normalise(images, mean, std).to(dtype)
    tokens = F.conv2d(pixels, weight.to(dtype), bias.to(dtype), stride=P).flatten(2).mT.to(weight.dtype)
    return finish(tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, D)), pos[keep], cls)


def visible_in_torch(images, weight, bias, keep, pos, cls, mean, std, dtype):
    cells = images.view(B, 3, 14, P, 14, P).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [B, N, C, p, p]
    seen = normalise(cells[torch.arange(B)[:, None], keep], mean.view(-1, 1, 1), std.view(-1, 1, 1))
    tokens = F.linear(seen.flatten(2).to(dtype), weight.flatten(1).to(dtype), bias.to(dtype))
    return finish(tokens.to(weight.dtype), pos[keep], cls)


PROVIDERS = {"ours": ours, "conv + gather": convolve_and_gather, "visible in torch": visible_in_torch}


@pytest.fixture(scope="module")
def inputs():
    images = torch.randint(0, 256, (B, 3, 14 * P, 14 * P), dtype=torch.uint8)
    keep = torch.rand(B, N).argsort(dim=1)[:, :K].sort(dim=1).values
    weight, bias, cls = (torch.randn(s, requires_grad=True) for s in ((D, 3, P, P), D, (1, D)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return images, weight, bias, keep, torch.randn(N, D), cls, mean, std


def forward(provider, inputs, dtype, grad):
    with torch.no_grad():
        return (provider(*inputs, dtype),)


def forward_backward(provider, inputs, dtype, grad):
    _, weight, bias, _, _, cls, *_ = inputs
    return torch.autograd.grad(provider(*inputs, dtype), (weight, bias, cls), grad)


PASSES = {"fwd": forward, "fwd+bwd": forward_backward}


def measure(benchmark, step, dtype, run, *arguments):
    benchmark.group = f"embed_visible {step} {dtype} B={B} N={N} K={K} D={D} p={P}"
    benchmark.pedantic(run, arguments, rounds=30, warmup_rounds=3)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["GFLOP/s"] = FLOPS[step] / benchmark.stats.stats.median / 1e9


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", PASSES)
def test_embed_visible(benchmark, inputs, step, dtype, provider):
    run, grad = PASSES[step], torch.randn(B, 1 + K, D)
    doubled = [x.double() if x.is_floating_point() else x for x in inputs]
    truth = run(visible_in_torch, doubled, torch.float64, grad.double())
    for got, want in zip(run(PROVIDERS[provider], inputs, dtype, grad), truth, strict=True):
        assert (got - want).abs().max() <= 16 * torch.finfo(dtype).eps * want.abs().max()
    measure(benchmark, step, dtype, run, PROVIDERS[provider], inputs, dtype, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", PASSES)
def test_bare_products(benchmark, step, dtype):
    rows, weight, grad = (torch.randn(s, dtype=dtype) for s in ((B * K, 3 * P * P), (D, 3 * P * P), (B * K, D)))

    def run():
        return (rows @ weight.T, grad.T @ rows) if step == "fwd+bwd" else rows @ weight.T

    measure(benchmark, step, dtype, run)
