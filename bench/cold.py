"""`python -m bench.cold`: the medians alone, one JSON line a case, for the pass with cold malloc."""

import json
import sys
from collections.abc import Sequence

from bench import cli
from bench.failures import Failures
from bench.runner import Bench, medians


def main(arguments: Sequence[str]) -> int:
    options = cli.parse(arguments)
    failures = Failures()
    bench = Bench(device=options.device, quick=options.quick, rounds=options.rounds)
    for entry in options.entries:
        for case in entry.cases(options.device, options.quick):
            with failures.said(f"{entry.name} {case.key}, cold"):
                print(json.dumps([case.key, medians(bench, entry, case)]), flush=True)
    return 1 if failures.count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
