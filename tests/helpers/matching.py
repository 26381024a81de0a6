"""Inputs of match_loss and match_predict, and their two forms called alike: layers laid out, one tensor an argument."""

import math

import torch

from bimkern.ops import MatchLayers, match_loss, match_predict
from bimkern.ops.match import match_loss_reference, match_predict_reference

SCALES = (4, 2, 1, 0.5)
DEFAULT = {"B": 3, "rows": 4, "columns": 6, "D": 32, "P": 6}
NUM_LAYERS = {4: 8, 2: 4, 1: 2, 0.5: 2}


def draw_layers(device, dtype, scale, D, P):
    E, F = D // 2, D // 4
    width = {4: F, 2: E}.get(scale, D)
    shapes = {"pred_weight": (P, width, 1, 1), "pred_bias": (P,)}
    if scale > 1:
        shapes |= {"up1_weight": (D, E, 2, 2), "up1_bias": (E,)}
    if scale == 4:
        shapes |= {"norm_weight": (E,), "norm_bias": (E,), "up2_weight": (E, F, 2, 2), "up2_bias": (F,)}
    # Weights of a trained layer's size: outputs of all layers are of order one.
    fan_in = {"pred_weight": width, "up1_weight": D, "up2_weight": E}
    return {
        name: torch.randn(shape, device=device, dtype=dtype) / math.sqrt(fan_in.get(name, 1))
        for name, shape in shapes.items()
    }


def draw_mask(device, dtype, B, N, masked=0.75):
    """Draw 0 and 1, with exactly round(masked * N) ones an image."""
    order = torch.rand(B, N, device=device).argsort(dim=1).argsort(dim=1)
    return (order < round(masked * N)).to(dtype)


def sample(device, dtype=torch.float32, scale=4, *, B, rows, columns, D, P, own=torch.float32, masked=0.75):
    """Return features, target, mask and the layers; their dtype is own."""
    N = rows * columns
    features = torch.randn(B, N, D, device=device).to(dtype)
    target = torch.randn(B, int(N * scale**2), P, device=device, dtype=torch.promote_types(dtype, torch.float32))
    layers = draw_layers(device, own, scale, D, P)
    return features, target, draw_mask(device, target.dtype, B, N, masked), *layers.values()


def compiler(scale):
    """Name what a test compiles with: where graphs break is decided before inductor, which has one scale to show."""
    return "inductor" if scale == 4 else "aot_eager"


def names(scale):
    return tuple(draw_layers("cpu", torch.float32, scale, 4, 1))


def grads(scale):
    """Return the positions of what gets a gradient: features and layers."""
    return (0, *range(3, 3 + NUM_LAYERS[scale]))


def named(scale, parameters):
    return MatchLayers(**dict(zip(names(scale), parameters, strict=True)))


def in_double(features, dtype):
    """Return the dtype of the products: float64 where the inputs are, for the truth."""
    return torch.float64 if features.dtype == torch.float64 else dtype or features.dtype


def ours(scale, grid, dtype=None, **options):
    def loss(features, target, mask, *parameters):
        options_ = {"grid": grid, "dtype": in_double(features, dtype), **options}
        return match_loss(features, named(scale, parameters), target, mask, scale, **options_)

    return loss


def torchs(scale, grid, dtype=None, kind="l2"):
    def loss(features, target, mask, *parameters):
        layers, compute = named(scale, parameters), in_double(features, dtype)
        denominator = mask.sum() * scale**2
        return match_loss_reference(features, layers, target, mask, scale, *grid, kind == "l1", denominator, compute)

    return loss


def predictions(scale, grid, dtype=None):
    """Return match_predict and its reference."""

    def predict(features, *parameters):
        return match_predict(features, named(scale, parameters), scale, grid=grid, dtype=in_double(features, dtype))

    def reference(features, *parameters):
        return match_predict_reference(features, named(scale, parameters), scale, *grid, in_double(features, dtype))

    return predict, reference
