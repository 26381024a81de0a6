"""`python -m bench.digits`: train every method on scikit-learn's digits, print, keep and draw how good it is."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.digits import orderings, table
from bench.digits.picture import draw
from bench.digits.study import QUICK, Plan, run
from bench.results import FOLDER, ResultsError, provenance

_DESCRIPTION = """\
Pre-train every method on half of scikit-learn's digits with several seeds, test the encoders on the other half by
nearest neighbors, a linear probe and fine-tuning, and say which findings of the papers show.
"""

_TERMS = """\
The same for all: encoder, images, steps, batch, warm-up and optimizer; not the operations of a step. Every method takes
the best of three rates of pre-training, by a linear probe, and of three of fine-tuning, chosen with the first seed on a
third of the training half; an MAE of fewer layers takes those of the whole one. Scratch has the fine-tuning's steps
alone. Nothing is augmented. Features are patch tokens averaged, with nothing masked. The halves are those of every
seed.
"""
_RATES = (("pre-training", "rate", Plan.rates), ("fine-tuning", "finetune_rate", Plan.finetune_rates))


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 2 where there is nothing to show."""
    options = _parser().parse_args(arguments)
    with TemporaryDirectory() as scratch:  # where a quick look is kept
        out = options.out or (Path(scratch) if options.quick else FOLDER) / "digits.csv"
        if not options.show:
            _measure(QUICK if options.quick else Plan(seeds=options.seeds), options.processes, out)
        try:
            _report(out)
        except ResultsError as error:
            print(f"bench.digits: {error}", file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.digits", description=_DESCRIPTION)
    parser.add_argument(
        "--quick", action="store_true", help="one seed and a few steps, not kept: a look whether it runs"
    )
    parser.add_argument("--seeds", type=_positive, default=Plan.seeds, help=f"of every method; default: {Plan.seeds}")
    parser.add_argument("--processes", type=_positive, default=2, help="trials at a time, a thread each; default: 2")
    parser.add_argument("--out", type=Path, help="CSV file, with a PNG beside it; default: bench/results/digits.csv")
    parser.add_argument("--show", action="store_true", help="print and draw what the CSV file holds, and stop")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _measure(plan: Plan, processes: int, out: Path) -> None:
    began = time.perf_counter()
    keeper = table.Keeper(out, provenance(torch.device("cpu")))
    for rows in run(plan, processes):
        keeper.add(rows)
        for row in rows:
            elapsed = f"{time.perf_counter() - began:6.0f} s"
            print(f"{elapsed}  {row.method}, layers {row.layers}, seed {row.seed}: {row.linear:.1%} linear", flush=True)
    print()


def _report(out: Path) -> None:
    accuracies, rows = table.read(out)
    title = table.heading(rows)
    print(f"{title}\n\n{_TERMS}\n{table.lay_out(accuracies)}\n")
    for kind, column, tried in _RATES:
        if found := table.at_the_edge(rows, column, tried):
            print(f"At an edge of the rates of {kind} tried, so that others may be better: {'; '.join(found)}.")
    print(f"\n{orderings.statements(accuracies)}")
    picture = out.with_suffix(".png")
    draw(accuracies, picture, title)
    print(f"\n{out} and {picture}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
