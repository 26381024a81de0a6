"""Accuracies of all seeds by method and depth, at the learning rates that were chosen."""

import statistics
from collections.abc import Sequence

from bench.studies.methods import methods
from bench.studies.rates import best_of
from bench.studies.study import PIXELS, Result, Study, fine_tuning_scores_of

METRICS = {"knn": "kNN", "linear": "linear", "fine_tuned": "fine-tuned"}

Key = tuple[str, int]  # a method, and the number of layers that are evaluated
Table = dict[Key, dict[str, list[float]]]  # by metric


def table_of(study: Study, results: Sequence[Result]) -> Table:
    """Return what the chosen rates gave, so far."""
    table: Table = {}

    def add(metric: str, key: Key, accuracy: float) -> None:
        table.setdefault(key, {metric: [] for metric in METRICS})[metric].append(accuracy)

    rates, of_fine_tuning = chosen_rates(study, results), chosen_fine_tuning_rates(study, results)
    for result in sorted(results, key=lambda result: result.trial.seed):
        trial = result.trial
        if trial.method not in rates or trial.rate != rates[trial.method]:
            continue
        for depth, linear in result.linear.items():
            add("knn", (trial.method, depth), result.knn[depth])
            add("linear", (trial.method, depth), linear)
        tuning = trial.fine_tuning
        if tuning is not None and result.fine_tuned is not None and tuning.rate == of_fine_tuning.get(trial.method):
            add("fine_tuned", (trial.method, tuning.depth), result.fine_tuned)
    return table


def chosen_rates(study: Study, results: Sequence[Result]) -> dict[str, float | None]:
    """Return the best rate so far of every method that has a result; None of those that need none."""
    found: dict[str, float | None] = {PIXELS: None}
    for name, method in study.methods().items():
        scores = study.scores_of(results, method.rates_of or name)
        if method.config is None or scores:
            found[name] = best_of(scores) if scores else None
    return found


def chosen_fine_tuning_rates(study: Study, results: Sequence[Result]) -> dict[str, float]:
    """Return the best rate of fine-tuning so far of every method that was fine-tuned."""
    found, rates = {}, chosen_rates(study, results)
    for name, method in study.methods().items():
        if scores := fine_tuning_scores_of(results, method.rates_of or name, rates.get(name)):
            found[name] = best_of(scores)
    return found


def at_limit(study: Study, results: Sequence[Result]) -> list[str]:
    """List the methods with a best rate beyond which none may be tried."""
    found = []
    for name, rate in chosen_rates(study, results).items():
        if rate is not None and study.rates.at_limit(rate):
            found.append(f"{name} ({rate:g})")
    for name, rate in chosen_fine_tuning_rates(study, results).items():
        if study.fine_tuning_rates.at_limit(rate):
            found.append(f"{name}, fine-tuned ({rate:g})")
    return found


def percent(values: Sequence[float]) -> str:
    """Write the mean over seeds and their standard deviation, in per cent."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def lay_out(study: Study, results: Sequence[Result]) -> str:
    """Lay out the table: methods as they are declared, whatever came first, each at the depths that are compared."""
    table, rates = table_of(study, results), chosen_rates(study, results)
    known = methods(study.source.side)
    cells = [["", "layers", "rate", *METRICS.values()]]
    for name in (PIXELS, *known):
        depths = (0,) if name == PIXELS else known[name].depths
        for depth in reversed(depths):
            if (name, depth) in table:
                rate = rates[name]
                cells.append([name, str(depth or ""), "" if rate is None else f"{rate:g}"])
                cells[-1] += map(percent, table[name, depth].values())
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def heading(study: Study, results: Sequence[Result]) -> str:
    """Say in two lines what the results are."""
    facts = results[-1].facts
    seeds = 1 + max(result.trial.seed for result in results)
    commits = ", ".join(sorted({str(result.facts["commit"]) for result in results}))
    minutes = sum(result.cpu_s for result in results) / 60
    return (
        f"{study.name}: {facts['steps']} steps of {facts['batch_size']} images on {facts['train']}, fine-tuned for "
        f"{facts['fine_tuning_steps']}; "
        f"{facts['held_out']} held out, chance {results[-1].chance:.1%}; seeds: {seeds}\n"
        f"{facts['device_name']}, torch {facts['torch']}, commit {commits}, {facts['date']}; "
        f"{len(results)} trials, {minutes:.0f} CPU minutes"
    )
