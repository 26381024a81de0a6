"""match_loss, match_predict: tokens against targets of another scale (x4, x2, x1, x1/2).

Shapes: B images, N = rows x columns tokens, D their width, M = N * scale**2 cells, P values predicted a cell, E and F
widths after the first and the second deconvolution.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check
from bimkern.ops.masked_loss import as_denominator, check_constants, check_kind, masked_loss_reference
from bimkern.ops.match_fused import NORM_EPS
from bimkern.ops.match_linear import in_float32, pool
from bimkern.ops.scale_mask import scale_mask_reference

_backend.declare("match_loss", kernels={"cpu": "native"})
_backend.declare("match_predict", kernels={"cpu": "native"})
_backend.schemas.define(
    "match_predict(Tensor features, Tensor?[] layers, float scale, int rows, int columns, ScalarType dtype) -> Tensor"
)

PARAMETERS = (torch.float32, torch.float64)


class MatchLayers(NamedTuple):
    """Parameters of one scale, in the shapes of ConvTranspose2d(2, stride=2), LayerNorm and Conv2d(1).

    x4: up1, norm, GELU, up2, pred. x2: up1, pred. x1 and x1/2: pred. What a scale has not is None.
    """

    pred_weight: Tensor  # [P, C, 1, 1], C the width that reaches it: F, E or D
    pred_bias: Tensor  # [P]
    up1_weight: Tensor | None = None  # [D, E, 2, 2]
    up1_bias: Tensor | None = None  # [E]
    norm_weight: Tensor | None = None  # [E]
    norm_bias: Tensor | None = None  # [E]
    up2_weight: Tensor | None = None  # [E, F, 2, 2]
    up2_bias: Tensor | None = None  # [F]


_UP1 = {"up1_weight": "D E 2 2", "up1_bias": "E"}
_NORM_UP2 = {"norm_weight": "E", "norm_bias": "E", "up2_weight": "E F 2 2", "up2_bias": "F"}
_PRED_BIAS = {"pred_bias": "P"}

# scale -> the parameters it has and their shapes.
SCALES: dict[float, dict[str, str]] = {
    4: {**_UP1, **_NORM_UP2, "pred_weight": "P F 1 1", **_PRED_BIAS},
    2: {**_UP1, "pred_weight": "P E 1 1", **_PRED_BIAS},
    1: {"pred_weight": "P D 1 1", **_PRED_BIAS},
    0.5: {"pred_weight": "P D 1 1", **_PRED_BIAS},
}


def match_predict_reference(
    features: Tensor, layers: MatchLayers, scale: float, rows: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """Wang et al. 2023 (LocalMIM), section 3.2, with the layers of its published program.

    Deconvolutions are written as products: on a GPU, torch's convolutions in float32 run in TF32.
    """
    x = features.unflatten(1, (rows, columns))  # [B, rows, columns, D]
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        if scale < 1:
            x = x.to(wide).unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(2, 4))
        if layers.up1_weight is not None:
            x = _deconvolve(x, layers.up1_weight, layers.up1_bias, dtype)
        if layers.up2_weight is not None:
            x = x.to(wide)
            weight, bias = (None if p is None else p.to(wide) for p in (layers.norm_weight, layers.norm_bias))
            x = F.gelu(F.layer_norm(x, x.shape[-1:], weight, bias, NORM_EPS))
            x = _deconvolve(x, layers.up2_weight, layers.up2_bias, dtype)
        pred = F.linear(x.to(dtype), layers.pred_weight.flatten(1).to(dtype), layers.pred_bias.to(dtype))
    return pred.flatten(1, 2)  # [B, M, P]


def _deconvolve(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Make [B, 2*rows, 2*columns, E] of [B, rows, columns, D] by weight [D, E, 2, 2]."""
    assert bias is not None
    squares = (x.to(dtype) @ weight.flatten(1).to(dtype)).unflatten(-1, weight.shape[1:])  # [B, rows, columns, E, 2, 2]
    return squares.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2) + bias.to(dtype)


def _predict(
    features: Tensor, layers: MatchLayers, scale: float, rows: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """Pool, and multiply by a narrow weight, in kernels; deconvolutions, and products in other dtypes, are torch's."""
    layers = MatchLayers(*layers)
    if scale > 1:
        return match_predict_reference(features, layers, scale, rows, columns, dtype)
    squares = scale < 1
    if dtype == torch.float32:
        tokens, weight, bias = in_float32(features, layers.pred_weight, layers.pred_bias)
        tokens = tokens if squares else tokens.to(dtype)  # what its weight's gradient is made of
        return _backend.run("match_linear", tokens, weight, bias, rows, columns, squares)[0]
    with torch.autocast(features.device.type, enabled=False):
        pooled = pool(features, None, rows, columns, dtype) if squares else features.to(dtype)
        return F.linear(pooled, layers.pred_weight.flatten(1).to(dtype), layers.pred_bias.to(dtype))


_backend.decompose("match_predict", _predict)


def match_loss_reference(
    features: Tensor,
    layers: MatchLayers,
    target: Tensor,
    mask: Tensor,
    scale: float,
    rows: int,
    columns: int,
    absolute: bool,
    denominator: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    pred = match_predict_reference(features, layers, scale, rows, columns, dtype)
    average, repeat = (2, 1) if scale < 1 else (1, int(scale))
    weight = scale_mask_reference(mask, rows, columns, average, repeat)
    return masked_loss_reference(pred, target, weight, denominator, absolute)


def match_predict(
    features: Tensor,
    layers: MatchLayers,
    scale: float,
    *,
    grid: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Predict the cells of another scale from tokens: deconvolution or pooling, then one linear layer.

    Args:
        features: [B, N, D], float32, float16, bfloat16 or float64, normalized tokens in raster order, without prefix.
        layers: parameters of the scale, float32 or float64.
        scale: 4, 2, 1 or 0.5.
        grid: (rows, columns) of the tokens, even at scale 0.5; by default N is a square.
        dtype: of the matrix products, under torch.autocast too; by default that of features. Normalization, GELU and
            pooling are done in float32 (float64 where dtype is).

    Returns:
        [B, M, P], M = N * scale**2 cells in raster order, dtype of the products. Differentiable in features and layers.

    Raises:
        ValueError: the scale, the grid, a shape, a device or a missing parameter; the message names it.
        TypeError: a dtype is off.
        RuntimeError: a gradient of a gradient, at scales 1 and 0.5 on a CPU.

    Same as: match_predict_reference.
    Source: Wang et al. 2023 (LocalMIM), section 3.2; layers as in its published program.
    """
    op = "match_predict"
    dtype = features.dtype if dtype is None else dtype
    _, rows, columns = check.once(_check, (features, *layers), op, scale, dtype, *(grid or ()))
    return _backend.call(op, match_predict_reference, features, layers, scale, rows, columns, dtype)


def match_loss(
    features: Tensor,
    layers: MatchLayers,
    target: Tensor,
    mask: Tensor,
    scale: float,
    *,
    kind: str = "l2",
    grid: tuple[int, int] | None = None,
    denominator: Tensor | float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Average the error of match_predict over the cells that count: sum(weight * mean_P error) / denominator.

    The weight of a cell is the mask of its token; at scale 0.5 the mean of its four, in {0, .25, .5, .75, 1}.

    Args:
        features, layers, scale, grid, dtype: as of match_predict.
        target: [B, M, P], float32 (float64 where dtype is), in which the error is computed; any strides. Gets no
            gradient, and must not require one.
        mask: [B, N], bool or one of these dtypes, 1 where masked. Gets no gradient, and must not require one.
        kind: "l2" (squared error) or "l1" (absolute error).
        denominator: scalar tensor on the device of features, or a number; by default the sum of all weights. Slices,
            micro-batches and ranks pass that of the whole batch, so that their losses and gradients add up to those of
            the whole.

    Returns:
        Scalar, dtype of target. Differentiable in features and layers. Zero, with zero gradients, where the denominator
        is zero.

    Raises:
        ValueError: the scale, the grid, a shape, a device, the kind, the denominator, a missing parameter, or something
            else than features and layers requires a gradient; the message names it.
        TypeError: a dtype is off.
        RuntimeError: a gradient of a gradient, on a CPU.

    Same as: match_loss_reference.
    Source: Wang et al. 2023 (LocalMIM), sections 3.1 and 3.2; fractional weights as in its published program.
    """
    op = "match_loss"
    dtype = features.dtype if dtype is None else dtype
    wide, rows, columns = check.once(_check_loss, (target, mask, features, *layers), op, scale, dtype, *(grid or ()))
    check_kind(op, kind)
    mask = mask.to(wide)
    divisor = as_denominator(op, denominator, mask, like="features")
    if denominator is None:
        divisor = divisor * scale**2
    of_cells = target, mask, float(scale), rows, columns, kind == "l1", divisor, dtype
    return _backend.call(op, match_loss_reference, features, layers, *of_cells)


def _check(features: Tensor, *given: Any) -> tuple[dict[str, int], int, int]:
    """Check what both functions take: parameters, op, scale, dtype and grid; return sizes of letters, rows, columns."""
    parameters, (op, scale, dtype, *grid) = given[: len(MatchLayers._fields)], given[len(MatchLayers._fields) :]
    dims = _check_layers(op, features, MatchLayers(*parameters), scale, dtype)
    return dims, *_grid(op, dims["N"], scale, *grid)


def _check_loss(target: Tensor, mask: Tensor, features: Tensor, *given: Any) -> tuple[torch.dtype, int, int]:
    """Check all that match_loss takes; return the dtype of the error, rows, columns."""
    dims, rows, columns = _check(features, *given)
    op, scale, dtype, *_ = given[len(MatchLayers._fields) :]
    known = dims | {"M": int(dims["N"] * scale**2)}
    check.shapes(op, known, target=(target, "B M P"), mask=(mask, "B N"))
    if dims["P"] == 0:
        raise ValueError(f"{op}: target must hold at least one value a cell, got {list(target.shape)}")
    wide = torch.promote_types(dtype, torch.float32)
    check.dtypes(op, target=(target, wide), mask=(mask, check.MASKS))
    check.same_device(op, features=features, target=target, mask=mask)
    check_constants(op, target=target, mask=mask)
    return wide, rows, columns


def _check_layers(op: str, features: Tensor, layers: MatchLayers, scale: float, dtype: torch.dtype) -> dict[str, int]:
    """Check features and layers and return the size of every letter."""
    if scale not in SCALES:
        raise ValueError(f"{op}: scale must be one of 4, 2, 1, 0.5, got {scale}")
    specs = SCALES[scale]
    for name, parameter in layers._asdict().items():
        if (parameter is None) == (name in specs):
            raise ValueError(
                f"{op}: layers at scale={scale} must be {', '.join(specs)}, got {name}"
                f"{'=None' if parameter is None else ''}"
            )
    parameters = {name: getattr(layers, name) for name in specs}
    own = layers.pred_weight.dtype
    shaped = {name: (parameters[name], spec) for name, spec in specs.items()}
    dims = check.shapes(op, features=(features, "B N D"), **shaped)
    check.dtypes(op, features=(features, check.FLOATS), pred_weight=(layers.pred_weight, PARAMETERS))
    check.dtypes(op, **{name: (parameter, own) for name, parameter in parameters.items()})
    if dtype not in check.FLOATS:
        raise TypeError(f"{op}: dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    check.same_device(op, features=features, **parameters)
    return dims


def _grid(op: str, num_tokens: int, scale: float, *grid: int) -> tuple[int, int]:
    if not grid:
        side = int(num_tokens**0.5)  # torch.compile traces no math.isqrt
        if side * side != num_tokens:
            raise ValueError(f"{op}: grid must be given where N is not a square, got N={num_tokens}")
        grid = (side, side)
    rows, columns = grid
    if rows < 0 or columns < 0 or rows * columns != num_tokens:
        raise ValueError(f"{op}: grid must be (rows, columns) of the N={num_tokens} tokens, got ({rows}, {columns})")
    if scale < 1 and (rows % 2 or columns % 2):
        raise ValueError(f"{op}: grid must be even at scale=0.5, got ({rows}, {columns})")
    return rows, columns
