"""The ops as modules, for networks and training loops of others."""

from bimkern.nn.hog import HOG
from bimkern.nn.masked_loss import MaskedLoss

__all__ = ["HOG", "MaskedLoss"]
