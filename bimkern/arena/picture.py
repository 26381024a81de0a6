"""A picture of a plan: every allocation as a rectangle, lifetime on the x axis and offset on the y axis."""

from pathlib import Path
from typing import Any

from bimkern.arena.plan import Allocation, Plan
from bimkern.figures import new_figure, polygons

_MIB = 2**20
_HEADROOM = 1.2  # for names and the legend


def draw(plan: Plan, path: Path) -> None:
    """Write the picture as PNG."""
    figure = new_figure(12, 6)
    axes = figure.subplots()
    colors = [f"C{i % 10}" for i in range(len(plan.scopes))]
    axes.add_collection(
        polygons(
            [_corners(plan, allocation, at) for allocation, at in zip(plan.allocations, plan.offsets, strict=True)],
            facecolors=[colors[allocation.scope] for allocation in plan.allocations],
            edgecolors="white",
            linewidths=0.2,
        )
    )
    times, sums = live_bytes(plan)
    axes.plot(times, [live / _MIB for live in sums], color="black", linewidth=0.8, drawstyle="steps-post", label="live")
    axes.axhline(plan.peak / _MIB, color="black", linestyle="--", linewidth=0.8, label="peak of the plan")
    for scope, color in zip(plan.scopes, colors, strict=True):
        middle = (scope.begin + scope.end) / 2
        above = (middle, plan.peak / _MIB)
        axes.annotate(scope.name, above, (0, 4), textcoords="offset points", ha="center", color=color)
    axes.set(
        xlim=(0, plan.ticks),
        ylim=(0, _HEADROOM * plan.peak / _MIB),
        xlabel="allocations and frees of one step",
        ylabel="MiB",
        title=f"{len(plan.allocations)} allocations, {plan.peak / _MIB:.1f} MiB, "
        f"{100 * plan.gap:.2f} % above the lower bound",
    )
    axes.legend(loc="upper right", ncols=3)
    figure.savefig(path, format="png", dpi=120)


def draw_sawtooth(axes: Any, plan: Plan) -> None:
    """Draw the live bytes over one step on matplotlib's axes, scope by scope."""
    times, sums = live_bytes(plan)
    for i, scope in enumerate(plan.scopes):
        inside = [j for j, time in enumerate(times) if scope.begin <= time <= scope.end]
        levels = [sums[j] / _MIB for j in inside]
        axes.fill_between([times[j] for j in inside], levels, step="post", color=f"C{i % 10}", label=scope.name)
    axes.axhline(plan.peak / _MIB, color="black", linestyle="--", linewidth=1, label="peak of the plan")
    axes.set(xlabel="allocations and frees of one step", ylabel="MiB", xlim=(0, plan.ticks))
    axes.set(ylim=(0, _HEADROOM * plan.peak / _MIB))
    axes.legend(loc="upper right", ncols=5)


def live_bytes(plan: Plan) -> tuple[list[int], list[int]]:
    """Return the ticks at which the sum of live bytes changes, and the sums, rounded as planned."""
    changes = [(each.begin, plan.room(each)) for each in plan.allocations]
    ends = [(each.end, plan.room(each)) for each in plan.allocations if each.end is not None]
    changes += [(end % plan.ticks, -room) for end, room in ends]
    changes += [(0, room) for end, room in ends if end >= plan.ticks]  # of the step before
    times, sums, live = [0], [0], 0
    for time, change in sorted(changes):
        live += change
        times.append(time)
        sums.append(live)
    return times, sums


def _corners(plan: Plan, allocation: Allocation, offset: int) -> list[tuple[float, float]]:
    bottom = offset / _MIB
    top = bottom + plan.slots(allocation) * plan.room(allocation) / _MIB
    begin = 0 if plan.slots(allocation) == 2 else allocation.begin
    end = plan.ticks if allocation.end is None else min(allocation.end, plan.ticks)
    return [(begin, bottom), (end, bottom), (end, top), (begin, top)]
