"""A step of a recipe whose layers freeze, at every number of frozen layer groups; `python -m bench freeze RECIPE...`.

All numbers are timed in turns, so that what the schedule saves in seconds can be held to what it saves in operations.
Without frozen groups the step is that of the same run without a freezing schedule.
"""

from functools import partial

from torch import Tensor

from bench.entry import Case, Entry, Measure, Run, register
from bench.flops import freeze_shares, step_flops
from bench.refcheck import WrongResult
from bench.results import Row
from bench.training import SAME_MASK, Defaults, Ours, config_of, hold, random_images, recipe_entry
from bimkern.mim.schedule import FreezeOut
from bimkern.recipes import RECIPES, Recipe

NAME = "freeze"
RECIPES_THAT_FREEZE = tuple(
    name for name, r in RECIPES.items() if isinstance(r, Recipe) and isinstance(r.config.schedule, FreezeOut)
)
_DEFAULTS = Defaults(
    recipes=("vitfreeze_vit_base",),
    quick_recipes=("vitfreeze_vit_test",),
    batch={"cpu": 8, "cuda": 256},
)


def freeze_entry(recipes: tuple[str, ...], batch_size: int | None) -> Entry:
    """Make the entry for some recipes; without any, for a base model, and a tiny one for a quick look."""
    return recipe_entry(
        NAME,
        _DEFAULTS,
        recipes,
        batch_size,
        summary="A training step at every number of frozen layer groups, and what a freezing schedule saves.",
        measure=measure,
        closing=lambda measured: "\n\n".join(savings(case, rows) for case, rows in measured),
    )


def measure(case: Case) -> Measure:
    config = config_of(case)
    method, B = config.method, case.dims["B"]
    ours = Ours(config, case, random_images(config, case))
    stages = {_name(groups): groups for groups in freeze_shares(config)}
    runs: dict[str, Run] = {name: partial(ours.step, 1, groups) for name, groups in stages.items()}
    unfrozen = _name(0)

    def check(provider: str, got: Tensor, expected: Tensor) -> None:
        dropped = sum(ours.model.is_frozen(stage, stages[provider]) for stage in range(len(expected)))
        if got.isnan().tolist() != [stage < dropped for stage in range(len(expected))]:
            raise WrongResult(f"{provider}: losses {got.tolist()}, expected {dropped} of NaN")
        hold(provider, got[dropped:], expected[dropped:], SAME_MASK[case.dtype])

    return Measure(
        ours=runs.pop(unfrozen),
        label=unfrozen,
        rivals=runs,
        reference=ours.losses,
        check=check,
        matrix_flops=B * step_flops(method),
        other_flops={name: B * step_flops(method, groups) for name, groups in stages.items()},
        parameters={name: list(ours.model.parameters()) for name in stages},
        items=B,
    )


def savings(case: Case, rows: list[Row]) -> str:
    """Lay out every number of frozen layer groups, and what the schedule saves over a run."""
    config = config_of(case)
    method = config.method
    shares = freeze_shares(config)
    operations = {groups: step_flops(method, groups) / step_flops(method) for groups in shares}
    seconds = {groups: row.ratio for row in rows for groups in shares if row.provider == _name(groups)}
    lines = [f"{case.shape}: {'frozen':>6}  of the run  operations  seconds"]
    indent = " " * len(case.shape)
    lines += [f"{indent}  {u:>6}  {shares[u]:>10.1%}  {operations[u]:>10.3f}  {seconds[u]:>7.3f}" for u in shares]
    saved, faster = (1 - _mean(shares, values) for values in (operations, seconds))
    lines.append(
        f"over the schedule {saved:.1%} of the operations are saved, and {faster:.1%} of the seconds "
        f"({100 * (faster - saved):+.1f} points)"
    )
    return "\n".join(lines)


def _mean(shares: dict[int, float], values: dict[int, float]) -> float:
    return sum(share * values[groups] for groups, share in shares.items())


def _name(groups: int) -> str:
    return f"{groups} frozen"


register(freeze_entry((), None))
