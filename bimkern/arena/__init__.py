"""Activation memory that is planned once and reused after every scope."""

from bimkern.arena.arena import Arena, Stats
from bimkern.arena.device import held_bytes, install, unusable
from bimkern.arena.errors import ArenaError, ArenaUnavailable
from bimkern.arena.leaks import Leak
from bimkern.arena.picture import draw, draw_sawtooth
from bimkern.arena.plan import Allocation, Plan, Scope, make_plan

__all__ = [
    "Allocation",
    "Arena",
    "ArenaError",
    "ArenaUnavailable",
    "Leak",
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
