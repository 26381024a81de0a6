"""`python -m bench digits` and `python -m bench photographs`: train every method, probe it, print, keep and draw."""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import cli
from bench.results import FOLDER, ResultsError
from bench.studies import results as files
from bench.studies import table
from bench.studies.claims import statements
from bench.studies.digits import Digits
from bench.studies.loop import InThisProcess, new_pool, run
from bench.studies.methods import methods
from bench.studies.photographs import Photographs
from bench.studies.picture import draw
from bench.studies.rates import RateSearch
from bench.studies.study import STUDIES, Result, Study
from bench.studies.trial import run_trial
from bimkern.errors import BimkernError

_DESCRIPTION = """\
Pre-train every method with several seeds, and test the encoders on held-out images by nearest neighbors, a linear probe
and fine-tuning"""
_TASKS = {
    "digits": "which digit a scan shows, of scikit-learn's 1797",
    "photographs": "which photograph a crop comes from, in regions that no training crop touches",
}
_TERMS = """\
The same for all on an encoder: images, steps, batch, warm-up and optimizer; not the operations of a step. Every method
takes the best rate of pre-training by {searched_by} on a part of the training images, and then the best of fine-tuning,
with the first seed; grids grow until the best lies inside. An MAE of fewer layers takes those of the whole one, a BIM
with a cheaper decoder those of BIM. Scratch has the fine-tuning's steps alone. Nothing is augmented. Features are patch
tokens averaged, with nothing masked."""
_QUICK = ("scratch", "MAE", "GreenMIM, Swin")


def main(name: str, arguments: Sequence[str]) -> int:
    """Run the command of a study and return its exit code.

    Raises:
        UsageError, ResultsError: there is nothing to run, or nothing to show.
    """
    given = parse(name, arguments)
    with TemporaryDirectory() as scratch:  # where a quick look is kept
        study = _study(name, given)
        out = given.out or (Path(scratch) if given.quick else FOLDER) / f"{name}.jsonl"
        work = given.work or (Path(scratch) / "work" if given.quick else Path("runs") / f"bench-{name}")
        found = files.read(out, study)
        if not given.show:
            try:
                _measure(study, found, out, work / files.digest(study), given.processes)
            except BimkernError as error:
                raise cli.UsageError(str(error)) from error
        if not found:
            raise ResultsError(f"{out}: holds no results; `python -m bench {name}` writes some")
        _report(study, found, out)
    return 0


def parse(name: str, arguments: Sequence[str]) -> Namespace:
    """Read the command line of a study.

    Raises:
        UsageError: it cannot be read.
    """
    epilog = "The same command continues an interrupted study."
    parser = cli.Parser(prog=f"python -m bench {name}", description=f"{_DESCRIPTION}: {_TASKS[name]}.", epilog=epilog)
    if name == "photographs":
        parser.add_argument("--data", type=Path, help="folder of photographs; default: inside scikit-image and -learn")
    add, whole = parser.add_argument, cli.positive
    add("--methods", nargs="+", metavar="NAME", default=(), help="in quotes, as in the table; default: all")
    add("--seeds", type=whole, default=Study.seeds, help=f"of every method; default: {Study.seeds}")
    add("--steps", type=whole, default=Study.steps, help=f"of pre-training; default: {Study.steps}")
    add("--processes", type=whole, default=1, help="trials at a time, a thread each; default: 1")
    add("--quick", action="store_true", help="three methods, one rate, a few steps and images; nothing is kept")
    add("--out", type=Path, help=f"JSON Lines file, with a PNG beside it; default: bench/results/{name}.jsonl")
    add(
        "--work",
        type=Path,
        help=f"folder for images and unfinished runs, apart by settings; default: runs/bench-{name}",
    )
    add("--show", action="store_true", help="print and draw what --out holds, and stop")
    return parser.parse_args(arguments)


def _study(name: str, given: Namespace) -> Study:
    study = replace(STUDIES[name], seeds=given.seeds, steps=given.steps, chosen=tuple(given.methods))
    if name == "photographs":
        study = replace(study, source=Photographs(folder=given.data))
    known = methods(study.source.side)
    if unknown := [method for method in given.methods if method not in known]:
        raise cli.UsageError(f"no method is named {unknown[0]!r}; choose from {'; '.join(known)}")
    if not given.quick:
        return study
    source = Digits(count=60) if name == "digits" else Photographs(folder=given.data, crops=4)
    rates = RateSearch(start=(2e-3,), lowest=2e-3, highest=2e-3)
    return replace(
        study,
        source=source,
        chosen=study.chosen or _QUICK,
        seeds=1,
        steps=2,
        batch_size=8,
        rates=rates,
        searched_by=None,
        probe_steps=2,
        fine_tuning_steps=2,
        fine_tuning_rates=rates,
    )


def _measure(study: Study, found: list[Result], out: Path, work: Path, processes: int) -> None:
    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    with InThisProcess() if processes == 1 else new_pool(processes) as pool:
        for result in run(study, found, partial(run_trial, study, work=work), pool, processes):
            files.append(out, [result])
            print(f"{time.monotonic() - began:6.0f} s  {_line(result)}", flush=True)


def _line(result: Result) -> str:
    accuracy = "diverged"
    if result.fine_tuned is not None:
        accuracy = f"{result.fine_tuned:.1%} fine-tuned"
    elif result.trial.fine_tuning is not None:
        accuracy = f"{result.validation:.1%} of the validation part"
    elif result.linear:
        accuracy = f"{result.linear[max(result.linear)]:.1%} linear"
    return f"{result.trial.name}: {accuracy}, {result.cpu_s:.0f} CPU s"


def _report(study: Study, found: Sequence[Result], out: Path) -> None:
    title = table.heading(study, found)
    searched_by = "a linear probe" if study.searched_by is None else f"fine-tuning at {study.searched_by:g}"
    print(f"\n{title}\n\n{_TERMS.format(searched_by=searched_by)}\n\n{table.lay_out(study, found)}\n")
    if limited := table.at_limit(study, found):
        print(f"No rate beyond these was tried, so that others may be better: {'; '.join(limited)}.\n")
    if left := len(list(study.pending(found))):
        print(f"Not finished: at least {left} trials are left; the same command without --show continues.\n")
    print(statements(table.table_of(study, found)))
    picture = out.with_suffix(".png")
    draw(study, found, picture, title)
    print(f"\n{out} and {picture}")
