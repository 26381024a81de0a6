"""match_predict against the convolutions of MIM programs.

Shapes: B images, N = side x side tokens, D width, E and F widths after the deconvolutions, L values of a prediction,
M = N * scale**2 cells.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import shapes
from bench.entry import Case, Measure, entry
from bench.refcheck import equal_up_to_rounding
from bimkern.nn import MatchHead
from bimkern.ops import match_predict
from bimkern.ops.match import match_predict_reference


class Predicting:
    """One head and its tokens: features and parameters in float32, products in the dtype of the case."""

    def __init__(self, case: Case) -> None:
        B, N, D, L, self.scale = (case.dims[letter] for letter in ("B", "N", "D", "L", "scale"))
        self.dtype, self.side = case.torch_dtype, math.isqrt(N)
        self.layers = MatchHead(D, L, self.scale).to(case.device).layers
        self.features = torch.randn(B, N, D, device=case.device, requires_grad=True)
        before = 2 * D * D if self.scale == 4 else 0  # the first deconvolution, to 4 rows of D / 2
        self.products = before + {4: 8 * D * L, 2: 4 * D * L}.get(self.scale, D * L)  # of a token (x1/2: of a cell)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.features, *(p for p in self.layers if p is not None)]

    def cast(self, *parameters: Tensor | None) -> list[Any]:
        return [None if p is None else p.to(self.dtype) for p in parameters]

    def normalized(self, x: Tensor) -> Tensor:
        norm = self.layers.norm_weight, self.layers.norm_bias
        return F.gelu(F.layer_norm(x.float(), x.shape[-1:], *norm, 1e-6)).to(self.dtype)

    def ours(self) -> Tensor:
        return match_predict(self.features, self.layers, self.scale, dtype=self.dtype)

    def reference(self) -> Tensor:
        return match_predict_reference(self.features, self.layers, self.scale, self.side, self.side, self.dtype)

    def convolutions(self) -> Tensor:
        """The usual form, [B, M, L]."""
        pred, pred_bias, up1, up1_bias, up2, up2_bias = self.cast(*self.layers[:4], *self.layers[6:])
        x = self.features.to(self.dtype).mT.unflatten(2, (self.side, self.side))  # [B, D, side, side]
        if self.scale < 1:
            x = F.avg_pool2d(x, 2)
        if self.scale > 1:
            x = F.conv_transpose2d(x, up1, up1_bias, stride=2)
        if self.scale == 4:
            x = self.normalized(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = F.conv_transpose2d(x, up2, up2_bias, stride=2)
        return F.conv2d(x, pred, pred_bias).flatten(2).mT

    def check(self, provider: str, got: Any, expected: Any) -> None:
        """Everything is float32 but the products, so their dtype says how exact a result can be."""
        equal_up_to_rounding(provider, self.rounded(got), self.rounded(expected))

    def rounded(self, output: Any) -> list[Tensor]:
        return [x.to(self.dtype) for x in (output if isinstance(output, tuple) else (output,))]


@entry("match_predict", shapes=shapes.PREDICT)
def measure(case: Case) -> Measure:
    """Predict every cell at another scale."""
    B, N, D, L = (case.dims[letter] for letter in "BNDL")
    scale = case.dims["scale"]
    predicting = Predicting(case)
    compiled = case.compiled(predicting.convolutions)
    tokens, predictions = 4 * B * N * D, case.itemsize * round(B * N * scale**2) * L
    # Tokens in, predictions out; back: the same and their gradient in, that of the tokens out.
    one_way = tokens + predictions
    return Measure(
        ours=predicting.ours,
        rivals={"conv": predicting.convolutions, "compile": compiled},
        reference=predicting.reference,
        check=predicting.check,
        leaves=predicting.leaves,
        bytes=one_way if case.pass_name == "fwd" else 2 * one_way + tokens,
        # A product's backward is two.
        matrix_flops=(1 if case.pass_name == "fwd" else 3) * 2 * B * round(N * min(1, scale**2)) * predicting.products,
        items=B,
    )
