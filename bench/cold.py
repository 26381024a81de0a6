"""`python -m bench.cold`: the medians alone, one JSON line a case, for the pass with cold malloc."""

import json
import sys
from collections.abc import Sequence

from bench import cli
from bench.runner import Bench, medians


def main(arguments: Sequence[str]) -> None:
    options = cli.parse(arguments)
    bench = Bench(device=options.device, quick=options.quick, rounds=options.rounds)
    for entry in options.entries:
        for case in entry.cases(options.device, options.quick):
            print(json.dumps([case.key, medians(bench, entry, case)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
