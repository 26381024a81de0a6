"""What may be wrong with an evaluation that was asked for."""

from torch import Tensor

from bimkern.errors import BimkernError


class EvaluationError(BimkernError, ValueError):
    """There is nothing to evaluate, or nothing to evaluate it on; the message says why."""


class NotFinite(EvaluationError):
    """Features are not finite."""


class ProbeDiverged(EvaluationError):
    """The weights of a classifier are not finite; on other features they may be."""


def check_finite(features: Tensor, where: str = "") -> None:
    """Make sure that features are numbers; `where` says of what they are.

    Raises:
        NotFinite: one is not.
    """
    if not features.isfinite().all():
        raise NotFinite(f"the features{where} are not finite, and cannot be evaluated; train it again")
