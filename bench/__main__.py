"""`python -m bench`: measure, print, keep."""

import json
import sys
from collections.abc import Sequence
from importlib import import_module

import torch

from bench import cli, malloc, report, results
from bench.entry import Entry, Measured
from bench.failures import Failures
from bench.runner import Bench, Medians, rows
from bimkern.output import printing

# With options of their own; they are imported when asked for, as they need torchvision, triton, matplotlib or
# scikit-learn.
_COMMANDS = {
    "dropin": "bench.dropin.command",
    "profile": "bench.profiling.command",
    "scaling": "bench.scaling.command",
    "traffic": "bench.traffic.command",
}
_STUDIES = ("digits", "photographs")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 2 for a wrong command line, 1 if a case failed."""
    try:
        name = arguments[0] if arguments else ""
        if name in _COMMANDS:
            return int(import_module(_COMMANDS[name]).main(arguments[1:]))
        if name in _STUDIES:
            from bench.studies import cli as studies

            return studies.main(name, arguments[1:])
        with printing():
            options = cli.parse(arguments)
            if options.list_names:
                print(report.listing(options.entries))
        if options.list_names:
            return 0
        if options.picture:
            from bench import picture  # matplotlib, which only a picture needs

            print(picture.draw(options.out or results.FOLDER / f"{options.device.type}.csv"))
        else:
            if options.device.type == "cpu":
                malloc.restart_warm(arguments)
            return 1 if _run(options) else 0
    except (cli.UsageError, results.ResultsError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: cli.Options) -> int:
    """Measure every case and return how many failures there were."""
    torch.backends.cudnn.allow_tf32 = False  # where the dtype is float32, convolutions of rivals are, too
    failures = Failures()
    bench = Bench(device=options.device, quick=options.quick, rounds=options.rounds, process_time=options.process_time)
    print(report.heading(results.provenance(options.device)), flush=True)
    for entry in options.entries:
        cold = _cold_medians(options, entry, failures) if options.cold else {}
        if entry.notes:
            print(f"\n{entry.notes}", flush=True)
        measured: Measured = []
        for case in entry.cases(options.device, options.quick):
            with failures.said(f"{entry.name} {case.key}"):
                measured.append((case, rows(bench, entry, case, cold.get(case.key, {}))))
                print(report.case(measured[-1][1]), flush=True)
                if options.out is not None:
                    results.append(options.out, measured[-1][1])
        if entry.closing and measured:
            print(f"\n{entry.closing(measured)}", flush=True)
    if options.out is not None:
        print(f"\nrows added to {options.out}")
    return failures.count


def _cold_medians(options: cli.Options, entry: Entry, failures: Failures) -> dict[str, Medians]:
    """Return the medians of those cases that the pass with cold malloc got through."""
    code, printed = malloc.run_cold(options.arguments(entry))
    if code != 0:
        failures.add(f"{entry.name}: the pass with cold malloc failed, exit code {code}")
    return dict(json.loads(line) for line in printed.splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
