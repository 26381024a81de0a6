"""The memory of a step of recipes: predicted, planned, and against MAE's.

    python -m bench.arena_table [RECIPE...] [--batch-size N] [--slices N...] [--measure RECIPE...]

Without recipes: all but the distilled ones and those that differ in schedule or length alone, into
bench/results/arena.csv, which is replaced. All in fp32.
`estimated` is what `python -m bimkern.plan` prints; `planned` and `bound` are those of the step itself, traced on
tensors without memory: activations and gradients together. What is measured (by default all tiny ones and three
others) takes four real steps, of which the arena replays two, in a process of its own, whose peak is `process`.
"""

import argparse
import csv
import multiprocessing
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.training import distinct_steps
from bimkern.arena import Arena
from bimkern.data.step_layout import Segment
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.config.run import Config
from bimkern.train.memory.estimate import ALIGNMENT, trace
from bimkern.train.memory.extrapolate import Extrapolation
from bimkern.train.optim.group import GroupOptimizer

RESULTS = Path(__file__).parent / "results" / "arena.csv"
NAMES = tuple(name for name in distinct_steps() if name in RECIPES)
MEASURED = (*(name for name in NAMES if "_test" in name), "mae_vit_base", "bim_vit_base", "localmim_vit_base")
PAPER = {"bim_vit_large": 0.59}  # of MAE's memory: Luo et al. 2023
CPU = torch.device("cpu")
FIELDS = (
    *("recipe", "batch", "slices", "activations", "of_mae", "of_mae_sliced", "paper", "estimated", "planned", "off"),
    *("bound", "gap", "plan_s", "real_plan", "measured", "process", "torch", "git"),
)


def planned(config: Config, batch: int) -> dict[str, Any]:
    kind = Segment(image_size=config.method.encoder.image_size, batch_size=batch, micro_batch=batch)
    need = Extrapolation().estimate(config, kind)
    counted, _ = trace(config, kind)
    begin = time.perf_counter()
    plan = counted.plan(ALIGNMENT["cpu"])
    seconds = time.perf_counter() - begin
    estimated = need.peak - need.bound + plan.bound  # without weights and the like
    return {
        "activations": counted.live.peak,
        "estimated": estimated,
        "planned": plan.peak,
        "off": round(estimated / plan.peak - 1, 5),
        "bound": plan.bound,
        "gap": round(plan.gap, 5),
        "plan_s": round(seconds, 3),
    }


def measured(config: Config, batch: int) -> dict[str, Any]:
    """Run real steps; return the peak of the arena's plan, the one that its last step reached, and the process's."""
    model, arena, flow = MIM(config.method), Arena(), config.method.flow
    updates = [GroupOptimizer(*group, config.optim, device=CPU, fp16=False) for group in flow.partition(model).items()]
    size = config.method.encoder.image_size
    for step in range(4):
        images, ids = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8), torch.arange(batch) + step
        views = model.views(images, ids, 0)
        flow.step(model, [MicroBatch(images, views)], updates, StepOptions(slices=config.run.slices, scope=arena.scope))
    # The third step was replayed, and was over when the fourth began.
    return {"real_plan": arena.plan().peak, "measured": arena.stats().planned_reach, "process": process_peak()}


def process_peak() -> int:
    """Return the most bytes of this process; getrusage would count those of its parent in."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def in_own_process(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def compared(rows: list[dict[str, Any]]) -> None:
    """Add the ratios of BIM's live activations to those of MAE in the same size, unsliced and as sliced."""
    live = {(row["recipe"], row["slices"]): row["activations"] for row in rows}
    for row in rows:
        mae = row["recipe"].replace("bim_", "mae_")
        if mae != row["recipe"]:
            for column, slices in (("of_mae", 1), ("of_mae_sliced", row["slices"])):
                if (mae, slices) in live:
                    row[column] = round(row["activations"] / live[mae, slices], 4)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.arena_table", description=__doc__)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--slices", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--measure", nargs="*", default=MEASURED)
    given = parser.parse_args(argv)
    git = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True, cwd=RESULTS.parent).strip()
    rows: list[dict[str, Any]] = []
    for name in given.recipes or NAMES:
        for slices in given.slices:
            config = RECIPES[name].config
            config = replace(config, run=replace(config.run, slices=slices, precision="fp32"))
            row = {"recipe": name, "batch": given.batch_size, "slices": slices} | planned(config, given.batch_size)
            if name in given.measure:
                row |= in_own_process(measured, config, given.batch_size)
            rows.append(row | {"paper": PAPER.get(name), "torch": torch.__version__, "git": git})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    compared(rows)
    if given.recipes:
        return
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
