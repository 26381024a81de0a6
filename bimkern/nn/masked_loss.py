"""MaskedLoss: the error of masked tokens' predictions, as a module.

Shapes: B images, N tokens, P values a token.
"""

from torch import Tensor, nn

from bimkern.ops import masked_loss
from bimkern.ops.masked_loss import check_kind


class MaskedLoss(nn.Module):
    """Average the error of predictions over the tokens that count.

    Args:
        kind: "l2" (squared error) or "l1" (absolute error).

    Same as: bimkern.ops.masked_loss, which says what each tensor may be.

    Example:
        loss = MaskedLoss("l1")(pred, target, mask)  # [B, N, P], [B, N, P], [B, N]
    """

    def __init__(self, kind: str = "l2") -> None:
        super().__init__()
        check_kind("MaskedLoss", kind)
        self.kind = kind

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor, denominator: Tensor | float | None = None
    ) -> Tensor:
        """Return sum(weight * mean_P error) / denominator, which is sum(weight) where it is not given."""
        return masked_loss(pred, target, weight, self.kind, denominator=denominator)

    def extra_repr(self) -> str:
        """Show the kind."""
        return repr(self.kind)
