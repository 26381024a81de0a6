"""A plan as data: what one step allocates, when, and at which offset. It can be saved, compared and drawn."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimkern.arena._native import native
from bimkern.arena.errors import ArenaError

_FORMAT = "bimkern arena plan 3"


@dataclass(frozen=True)
class Scope:
    """Allocations [first, last) of the plan; times are ticks, one for every event of the step."""

    name: str
    begin: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Allocation:
    """end is at or above the plan's ticks for one that dies in the next step; None: it outlives the step."""

    scope: int
    bytes: int
    begin: int
    end: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Two allocations share memory only if they are never live at the same time."""

    alignment: int
    padding: int  # after every allocation: the canaries of debug mode
    ticks: int
    scopes: tuple[Scope, ...]
    allocations: tuple[Allocation, ...]
    offsets: tuple[int, ...]  # of the allocations
    peak: int  # bytes of the region
    bound: int  # the largest sum of live bytes: no plan can need less

    @property
    def gap(self) -> float:
        """How far the peak is above the bound, as a ratio."""
        return self.peak / self.bound - 1 if self.bound else 0.0

    def survives(self, allocation: Allocation) -> bool:
        """Return whether an allocation is live after its scope."""
        return allocation.end is None or allocation.end > self.scopes[allocation.scope].end

    def slots(self, allocation: Allocation) -> int:
        """Return 2, one right after the other, for what may be live when its successor of the next step is born."""
        end = allocation.end
        return 1 + (end is None or end - self.ticks > allocation.begin)

    def room(self, allocation: Allocation) -> int:
        """Return the space of an allocation: its bytes and the padding, rounded up."""
        return -(-(allocation.bytes + self.padding) // self.alignment) * self.alignment

    def to_json(self) -> str:
        """Write the plan as text that is the same for equal plans, one scope or allocation per line."""
        head = {name: getattr(self, name) for name in ("alignment", "padding", "ticks", "peak", "bound")}
        scopes = ([s.name, s.begin, s.end, s.first, s.last] for s in self.scopes)
        rows = zip(self.allocations, self.offsets, strict=True)
        allocations = ([a.scope, a.bytes, a.begin, a.end, offset] for a, offset in rows)
        fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {"format": _FORMAT, **head}.items()]
        fields += [f'"scopes": {_lines(scopes)}', f'"allocations": {_lines(allocations)}']
        return "{" + ",\n".join(fields) + "}\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what to_json wrote.

        Raises:
            ValueError: it is no plan, or one whose allocations could overlap.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
                raise ValueError(f"Plan: expected a JSON object of format {_FORMAT!r}; make an older plan again")
            rows, scopes = data.pop("allocations"), data.pop("scopes")
            plan = cls(
                scopes=tuple(Scope(*scope) for scope in scopes),
                allocations=tuple(Allocation(*row[:4]) for row in rows),
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
    scopes: Iterable[Scope], allocations: Iterable[Allocation], *, ticks: int, alignment: int, padding: int = 0
) -> Plan:
    """Assign an offset to every allocation of a trace, which need not come from an arena.

    Args:
        scopes: one after the other, never nested.
        allocations: ordered by begin, each of which begins inside its scope.
        ticks: the length of the step; every time is below it.
        alignment: of every allocation, in bytes.
        padding: bytes to keep free after every allocation.

    Raises:
        ValueError: the trace is not well formed.
    """
    trace = _trace(scopes, allocations, ticks)
    try:
        return from_native(native().make_plan(trace, alignment, padding))
    except ArenaError as error:
        raise ValueError(str(error)) from error


def to_native(plan: Plan) -> tuple[Any, ...]:
    """Return a plan as python/arena.cpp takes it."""
    trace = _trace(plan.scopes, plan.allocations, plan.ticks)
    return (trace, plan.alignment, plan.padding, plan.offsets, plan.peak, plan.bound)


def from_native(native_plan: tuple[Any, ...]) -> Plan:
    (scopes, rows, ticks), alignment, padding, offsets, peak, bound = native_plan
    return Plan(
        alignment=alignment,
        padding=padding,
        ticks=ticks,
        scopes=tuple(Scope(*scope) for scope in scopes),
        allocations=tuple(
            Allocation(scope, size, begin, None if end == -1 else end) for scope, size, begin, end in rows
        ),
        offsets=tuple(offsets),
        peak=peak,
        bound=bound,
    )


def _trace(scopes: Iterable[Scope], allocations: Iterable[Allocation], ticks: int) -> tuple[Any, ...]:
    return (
        [(s.name, s.begin, s.end, s.first, s.last) for s in scopes],
        [(a.scope, a.bytes, a.begin, -1 if a.end is None else a.end) for a in allocations],
        ticks,
    )


def _lines(rows: Iterable[list[Any]]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
