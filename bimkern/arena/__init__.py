"""Activation memory that is planned once and reused after every scope."""

from bimkern.arena.arena import Arena, Stats
from bimkern.arena.device import held_bytes, install, unusable
from bimkern.arena.errors import ArenaError, ArenaUnavailable
from bimkern.arena.outlived import Outlived
from bimkern.arena.picture import draw, draw_sawtooth
from bimkern.arena.plan import Block, Plan, Scope, make_plan

__all__ = [
    "Arena",
    "ArenaError",
    "ArenaUnavailable",
    "Block",
    "Outlived",
    "Plan",
    "Scope",
    "Stats",
    "draw",
    "draw_sawtooth",
    "held_bytes",
    "install",
    "make_plan",
    "unusable",
]
