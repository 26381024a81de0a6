"""A Swin of four stages that is small enough for tests, and what it computes behind each.

Shapes: B images, T tokens, D width.
"""

from dataclasses import replace

import torch

from bimkern.mim.masking.view import StageView
from bimkern.models.layers import set_compute_dtype
from bimkern.models.swin import SwinConfig
from bimkern.recipes import RECIPES

SMALL = {"width": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}


def build(window, **changes):
    """Build a Swin whose biases and norms are not those of a new one."""
    config = SwinConfig(**SMALL | {"window": window} | changes)
    model = config.module(config).double()
    set_compute_dtype(model, torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith("table"):
                parameter.add_(torch.randn_like(parameter) / 4)
    return model


def recipe(**changes):
    """Return the config of FastMIM with such a Swin for images of 64 pixels, and a head behind its last layer."""
    config = RECIPES["fastmim_swin_tiny_test"].config
    encoder = SwinConfig(**SMALL | {"image_size": 64} | changes)
    masker = replace(config.method.masker, mask_unit=8)
    return replace(config, method=replace(config.method, encoder=encoder, taps=(encoder.depth - 1,), masker=masker))


def sparse_view(model, keep, grid):
    return StageView(grid, keep, None, keep, keep, None, model.plan(grid, keep))


def taps(model, images, view):
    """Return the tokens behind every stage, [B, T, D] each."""
    tokens = model.embed(images) if view.keep is None else model.embed_visible(images, view.keep)
    found, ends = [], [sum(model.config.depths[: i + 1]) - 1 for i in range(len(model.config.depths))]
    for layer in range(model.config.depth):
        tokens = model.run_layer(layer, tokens, view)
        if layer in ends:
            found.append(tokens)
    return found
