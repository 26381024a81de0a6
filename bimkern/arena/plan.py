"""A plan as data: what one step allocates, when, and where it is put. It can be saved, compared and drawn."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimkern.arena._native import native
from bimkern.arena.errors import ArenaError

_FORMAT = "bimkern arena plan 1"


@dataclass(frozen=True)
class Scope:
    """Blocks [first, last) of the plan; times are ticks, one for every event of the step."""

    name: str
    begin: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Block:
    """An allocation; end is None if it lives into the next step, where it then has a second place behind the first."""

    scope: int
    bytes: int
    begin: int
    end: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What dies inside its scope lies in a region that all scopes use from its start, the others in a second one."""

    alignment: int
    padding: int  # behind every block: the canaries of debug mode
    ticks: int
    scopes: tuple[Scope, ...]
    blocks: tuple[Block, ...]
    offsets: tuple[int, ...]  # of the blocks, in their region
    scope_bytes: int  # the first region
    survivor_bytes: int  # the second
    bound: int  # the largest sum of what lives at one time: no plan can do with less

    @property
    def peak(self) -> int:
        """Bytes of both regions."""
        return self.scope_bytes + self.survivor_bytes

    @property
    def gap(self) -> float:
        """How far the peak is above the bound, as a ratio."""
        return self.peak / self.bound - 1 if self.bound else 0.0

    def survives(self, block: Block) -> bool:
        """Tell whether a block lives on after its scope."""
        return block.end is None or block.end > self.scopes[block.scope].end

    def room(self, block: Block) -> int:
        """Return what a block takes: its bytes and the padding, rounded up."""
        return -(-(block.bytes + self.padding) // self.alignment) * self.alignment

    def to_json(self) -> str:
        """Write the plan as text that is the same for equal plans, one scope or block a line."""
        head = {
            name: getattr(self, name)
            for name in ("alignment", "padding", "ticks", "scope_bytes", "survivor_bytes", "bound")
        }
        scopes = ([s.name, s.begin, s.end, s.first, s.last] for s in self.scopes)
        blocks = ([b.scope, b.bytes, b.begin, b.end, at] for b, at in zip(self.blocks, self.offsets, strict=True))
        fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {"format": _FORMAT, **head}.items()]
        return "{" + ",\n".join([*fields, f'"scopes": {_lines(scopes)}', f'"blocks": {_lines(blocks)}']) + "}\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what to_json wrote.

        Raises:
            ValueError: it is no plan, or one whose blocks could overlap.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
                raise ValueError(f"Plan: expected a JSON object of format {_FORMAT!r}")
            rows, scopes = data.pop("blocks"), data.pop("scopes")
            plan = cls(
                scopes=tuple(Scope(*scope) for scope in scopes),
                blocks=tuple(Block(*row[:4]) for row in rows),
                offsets=tuple(row[4] for row in rows),
                **data,
            )
            native().check_plan(to_native(plan))
        except json.JSONDecodeError as error:
            raise ValueError(f"Plan: not JSON: {error}") from error
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError("Plan: a field is missing, unknown or of another type than expected") from error
        except ArenaError as error:
            raise ValueError(str(error)) from error
        return plan

    def save(self, path: Path) -> None:
        """Write the plan to a file, as to_json does."""
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan from a file; raises ValueError like from_json."""
        return cls.from_json(path.read_text(encoding="utf-8"))


def make_plan(
    scopes: Iterable[Scope], blocks: Iterable[Block], *, ticks: int, alignment: int, padding: int = 0
) -> Plan:
    """Place the blocks of a trace, which need not come from an arena.

    Args:
        scopes: one after the other, never nested.
        blocks: ordered by begin, each of which begins inside its scope.
        ticks: the length of the step; every time is below it.
        alignment: of every block, in bytes.
        padding: bytes to keep free behind every block.

    Raises:
        ValueError: the trace is not well formed.
    """
    trace = _trace(scopes, blocks, ticks)
    try:
        return from_native(native().make_plan(trace, alignment, padding))
    except ArenaError as error:
        raise ValueError(str(error)) from error


def to_native(plan: Plan) -> tuple[Any, ...]:
    """Lay a plan out as python/arena.cpp takes it."""
    trace = _trace(plan.scopes, plan.blocks, plan.ticks)
    regions = (plan.scope_bytes, plan.survivor_bytes, plan.bound)
    return (trace, plan.alignment, plan.padding, plan.offsets, *regions)


def from_native(native_plan: tuple[Any, ...]) -> Plan:
    (scopes, blocks, ticks), alignment, padding, offsets, scope_bytes, survivor_bytes, bound = native_plan
    return Plan(
        alignment=alignment,
        padding=padding,
        ticks=ticks,
        scopes=tuple(Scope(*scope) for scope in scopes),
        blocks=tuple(Block(scope, size, begin, None if end == -1 else end) for scope, size, begin, end in blocks),
        offsets=tuple(offsets),
        scope_bytes=scope_bytes,
        survivor_bytes=survivor_bytes,
        bound=bound,
    )


def _trace(scopes: Iterable[Scope], blocks: Iterable[Block], ticks: int) -> tuple[Any, ...]:
    return (
        [(s.name, s.begin, s.end, s.first, s.last) for s in scopes],
        [(b.scope, b.bytes, b.begin, -1 if b.end is None else b.end) for b in blocks],
        ticks,
    )


def _lines(rows: Iterable[list[Any]]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
