"""How long the demo takes alone and beside another busy process, with idle OpenMP threads that sleep and that spin.

    python -m bench.busy_neighbor [--rounds N] [--steps N]

Whole processes, in turns. "ours" is what our commands set (bimkern/openmp.py), "sleep" the policy PASSIVE alone, "spin"
the default of GNU's runtime.
The medians go to bench/results/busy_neighbor.csv, which is replaced.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

from bench import results
from bimkern import openmp

RESULTS = results.FOLDER / "busy_neighbor.csv"
POLICIES = {"ours": openmp.OURS, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "spin": {"GOMP_SPINCOUNT": "300000"}}
FIELDS = ("neighbor", "policy", "median_s", "min_s", "max_s", "rounds", "steps")


@contextmanager
def neighbor(busy: bool) -> Iterator[None]:
    """Keep one core busy for a while, or not."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def seconds(policy: str, steps: int) -> float:
    """Time a run of the demo as a process."""
    ours = {name for settings in POLICIES.values() for name in settings}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | POLICIES[policy]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bimkern.pretrain", "demo", "--steps", str(steps), "--out", f"{folder}/run"]
        begin = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.busy_neighbor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args(argv)
    times: dict[tuple[bool, str], list[float]] = {(busy, policy): [] for busy in (False, True) for policy in POLICIES}
    for _ in range(given.rounds):
        for (busy, policy), measured in times.items():
            with neighbor(busy):
                measured.append(seconds(policy, given.steps))
    provenance = results.provenance(torch.device("cpu"))
    rows = [
        {
            "neighbor": "busy" if busy else "none",
            "policy": policy,
            "median_s": round(median(measured), 2),
            "min_s": round(min(measured), 2),
            "max_s": round(max(measured), 2),
            "rounds": given.rounds,
            "steps": given.steps,
        }
        for (busy, policy), measured in times.items()
    ]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, *provenance])
        writer.writeheader()
        writer.writerows(row | provenance for row in rows)
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
