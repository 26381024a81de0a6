"""The ops as modules, for use in any network."""

from bimkern.nn.match_head import MatchHead

__all__ = ["MatchHead"]
