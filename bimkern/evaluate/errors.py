"""What may be wrong with an evaluation that was asked for."""

from bimkern.errors import BimkernError


class EvaluationError(BimkernError, ValueError):
    """There is nothing to evaluate, or nothing to evaluate it on; the message says why."""


class ProbeDiverged(EvaluationError):
    """The weights of a classifier are not finite; on other features they may be."""
