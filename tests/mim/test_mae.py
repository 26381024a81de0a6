"""The whole MAE loss against a second computation, written from the paper with nothing of ours but the weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import gelu

from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD, MIM
from bimkern.mim.targets import StageTarget
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import RECIPES

PATCH, GRID, HEADS = 8, 4, 2


def layer_norm(x, weights, name):
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def transformer_layer(x, weights, name):
    B, T, D = x.shape
    qkv = linear(layer_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv")
    q, k, v = (part.reshape(B, T, HEADS, D // HEADS).transpose(1, 2) for part in qkv.split(D, dim=-1))
    attention = (q @ k.transpose(-1, -2) / math.sqrt(D // HEADS)).softmax(-1) @ v
    x = x + linear(attention.transpose(1, 2).reshape(B, T, D), weights, f"{name}.attn.proj")
    wide = gelu(linear(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"))
    return x + linear(wide, weights, f"{name}.mlp.fc2")


def position_table(width):
    table = torch.zeros(1 + GRID * GRID, width, dtype=torch.float64)  # the cls row stays zero
    quarter = width // 4
    for row in range(GRID):
        for column in range(GRID):
            for i in range(quarter):
                for half, position in enumerate((column, row)):
                    angle = position / 10000 ** (i / quarter)
                    table[1 + row * GRID + column, half * 2 * quarter + i] = math.sin(angle)
                    table[1 + row * GRID + column, half * 2 * quarter + quarter + i] = math.cos(angle)
    return table


def patches(images):
    """[B, N, p*p*3] with loops, channels fastest."""
    return torch.stack(
        [
            images[:, :, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].permute(0, 2, 3, 1).flatten(1)
            for r in range(GRID)
            for c in range(GRID)
        ],
        dim=1,
    )


def mae_loss(images, keep, weights):
    """He et al. 2022: encode visible patches, append mask tokens, un-shuffle, decode, compare masked patches."""
    B = len(images)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    vectors = patches((images.double() / 255 - mean) / std)  # [B, N, p*p*3]
    kernel = weights["encoder.patch_embed.weight"].permute(0, 2, 3, 1).flatten(1)  # channels fastest, like vectors
    tokens = vectors @ kernel.T + weights["encoder.patch_embed.bias"] + position_table(kernel.shape[0])[1:]
    visible = torch.stack([tokens[b, keep[b]] for b in range(B)])
    x = torch.cat([weights["encoder.cls_token"].expand(B, -1, -1), visible], dim=1)
    for i in range(4):
        x = transformer_layer(x, weights, f"encoder.blocks.{i}")

    x = linear(layer_norm(x, weights, "heads.0.in_norm"), weights, "heads.0.embed")
    decoded = torch.empty(B, 1 + GRID * GRID, x.shape[-1], dtype=torch.float64)
    decoded[:] = weights["heads.0.mask_token"]
    decoded[:, 0] = x[:, 0]
    for b in range(B):
        decoded[b, 1 + keep[b]] = x[b, 1:]
    decoded = decoded + position_table(x.shape[-1])
    decoded = transformer_layer(decoded, weights, "heads.0.blocks.0")
    prediction = linear(layer_norm(decoded, weights, "heads.0.norm"), weights, "heads.0.pred")[:, 1:]

    total, count = 0.0, 0
    for b in range(B):
        for n in set(range(GRID * GRID)) - set(keep[b].tolist()):
            patch = vectors[b, n]
            target = (patch - patch.mean()) / (patch.var(unbiased=True) + 1e-6).sqrt()
            total += (prediction[b, n] - target).square().mean()
            count += 1
    return total / count


def test_mae_loss_and_gradients_equal_an_independent_computation():
    torch.manual_seed(3)
    model = MIM(RECIPES["mae_vit_test"].config.method).double()
    set_compute_dtype(model, torch.float64)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    batch = MicroBatch(images, model.views(images, torch.arange(3), seed=8))
    (view,) = batch.views

    loss = model.loss(0, model.encode(0, images, view), images, view, StageTarget(), view.masked.sum())
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    independent = mae_loss(images, view.keep, weights)

    # The position table is float32 in the model, hence not tighter.
    torch.testing.assert_close(loss, independent, rtol=1e-6, atol=0)
    loss.backward()
    independent.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, rtol=1e-4, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_channels_are_normalized_by_their_own_statistics(channels):
    method = RECIPES["mae_vit_test"].config.method
    encoder, statistics = replace(method.encoder, channels=channels), torch.rand(2, channels) + 0.2
    mean, std = map(tuple, statistics.tolist())
    model = MIM(replace(method, encoder=encoder, mean=mean, std=std))
    assert torch.equal(torch.stack([model.mean, model.std]), statistics)
    images = torch.randint(
        0, 256, (2, channels, encoder.image_size.height, encoder.image_size.height), dtype=torch.uint8
    )
    (view,) = model.views(images, torch.arange(2), 1)
    loss = model.loss(0, model.encode(0, images, view), images, view, StageTarget(), view.weights(view.grid).sum())
    assert loss.isfinite()
    with pytest.raises(ValueError, match=f"Method: mean must hold a value for each of .* {channels} channels, got"):
        replace(method, encoder=encoder)
    with pytest.raises(ValueError, match="Method: std must be above 0 and finite, got"):
        replace(method, std=(0.2, 0.2, 0.0))
