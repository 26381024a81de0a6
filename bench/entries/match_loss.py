"""match_loss against the convolutions of MIM programs, and against the same for masked tokens alone.

Shapes: B images, N = side x side tokens, D width, E and F widths after the deconvolutions, L values of a prediction.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import inputs, shapes
from bench.entries.match_predict import Predicting
from bench.entry import Case, Measure, entry
from bimkern.ops import keep_to_mask, match_loss
from bimkern.ops.match import match_loss_reference


class Matching(Predicting):
    """One head and its inputs."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        B, N, L = (case.dims[letter] for letter in "BNL")
        self.target = torch.randn(B, int(N * self.scale**2), L, device=case.device)
        self.mask = keep_to_mask(inputs.keep(case), N)  # [B, N]

    def ours(self) -> Tensor:
        return match_loss(self.features, self.layers, self.target, self.mask, self.scale, dtype=self.dtype)

    def reference(self) -> Tensor:
        grid, denominator = (self.side, self.side), self.mask.sum() * self.scale**2
        arguments = self.features, self.layers, self.target, self.mask
        return match_loss_reference(*arguments, self.scale, *grid, False, denominator, self.dtype)

    def convolutions(self) -> Tensor:
        """The usual form: every token is predicted, and visible ones are weighted with zero."""
        mask = self.mask.unflatten(1, (self.side, self.side))
        if self.scale < 1:
            mask = F.avg_pool2d(mask.unsqueeze(1), 2).squeeze(1)
        else:
            mask = mask.repeat_interleave(self.scale, 1).repeat_interleave(self.scale, 2)
        predictions = super().convolutions().float()
        return ((predictions - self.target).square().mean(-1) * mask.flatten(1)).sum() / mask.sum()

    def masked(self) -> Tensor:
        """The best form in plain torch: rows of masked tokens, the prediction folded into the last deconvolution."""
        pred, pred_bias, up1, up1_bias, up2, up2_bias = self.cast(*self.layers[:4], *self.layers[6:])
        side, pred = self.side, pred.flatten(1)
        features, mask, target = self.features, self.mask, self.target
        if self.scale < 1:
            features = F.avg_pool2d(features.mT.unflatten(2, (side, side)), 2).flatten(2).mT
            side, mask = side // 2, F.avg_pool2d(mask.unflatten(1, (side, side)).unsqueeze(1), 2).flatten(1)
        positions = mask.nonzero(as_tuple=True)
        x = features[positions].to(self.dtype)  # [n, D]
        if self.scale == 4:
            x = x @ up1.permute(0, 2, 3, 1).flatten(1)  # [n, 4*E]
            x = self.normalized(x.unflatten(1, (4, -1)) + up1_bias)  # [n, 4, E]
        up, up_bias = (up2, up2_bias) if self.scale == 4 else (up1, up1_bias)
        if up is None:
            x = x @ pred.T
        else:
            x = x @ (up.permute(0, 2, 3, 1) @ pred.T).flatten(1)  # [n, (4,) 4*L]
            x = x.unflatten(-1, (4, -1))
            pred_bias = pred_bias + pred @ up_bias
        error = (x + pred_bias).float() - self.cells(target, side)[positions].view(x.shape)
        return (error.square().flatten(1).mean(1) * mask[positions]).sum() / mask.sum()

    def cells(self, target: Tensor, side: int) -> Tensor:
        """View a target [B, M, L] cell by cell, in the order in which deconvolutions make values: [B, N, ...]."""
        if self.scale <= 1:
            return target
        halves = (2, 2) if self.scale == 4 else (2,)
        order = (0, 1, 4, 2, 5, 3, 6, 7) if self.scale == 4 else (0, 1, 3, 2, 4, 5)
        return target.unflatten(1, (side, *halves, side, *halves)).permute(order).flatten(1, 2)


@entry("match_loss", shapes=shapes.MATCH)
def measure(case: Case) -> Measure:
    """Predict masked cells at another scale and take their loss; what forward makes is not written to memory."""
    B, N, K, D, L = (case.dims[letter] for letter in "BNKDL")
    scale = case.dims["scale"]
    matching = Matching(case)
    compiled = case.compiled(matching.convolutions)

    cells = B * (N - K) if scale >= 1 else B * N // 4
    passes = 1 if case.pass_name == "fwd" else 3  # a product's backward is two
    target = cells * int(max(1, scale)) ** 2 * L
    # Masked rows and their target in; back: gradients of all tokens out.
    one_way = 4 * (B * (N - K) * D + target)
    return Measure(
        ours=matching.ours,
        rivals={"conv": matching.convolutions, "masked": matching.masked, "compile": compiled},
        reference=matching.reference,
        check=matching.check,
        leaves=matching.leaves,
        bytes=one_way if case.pass_name == "fwd" else one_way + 4 * B * N * D,
        matrix_flops=passes * 2 * cells * matching.products,
        items=B,
    )
