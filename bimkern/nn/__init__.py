"""Ops as modules, for other networks and training loops."""

from bimkern.nn.hog import HOG
from bimkern.nn.masked_loss import MaskedLoss
from bimkern.nn.match_head import MatchHead

__all__ = ["HOG", "MaskedLoss", "MatchHead"]
