"""The memory of a step of recipes: planned beforehand, planned and measured in real steps, and against MAE.

    python -m bench.arena_table [RECIPE...] [--batch-size N] [--slices N] [--measure RECIPE...]

Without recipes: MAE and BIM on ViT-B, -L and -H. `planned` and `bound` are those of activations and gradients
together, fp32. What is measured
takes four real steps, of which the arena replays two. Rows are appended to bench/results/arena.csv.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bimkern.arena import Arena
from bimkern.data.course import Stretch
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.config import Config
from bimkern.train.optim import GroupOptimizer
from bimkern.train.scaling import Scaling

RESULTS = Path(__file__).parent / "results" / "arena.csv"
SIZES = ("base", "large", "huge")
PAPER = {"bim_vit_large": 0.59}  # of MAE's memory: Luo et al. 2023
CPU = torch.device("cpu")


def planned(config: Config, batch: int) -> dict[str, Any]:
    kind = Stretch(image_size=config.method.encoder.image_size, batch_size=batch, micro_batch=batch)
    need = Scaling().need(config, kind)
    always = need.weights + need.optimizer + need.inputs
    peak, bound = need.peak - always, need.bound - always
    return {"activations": need.activations, "planned": peak, "bound": bound, "gap": round(peak / bound - 1, 5)}


def measured(config: Config, batch: int) -> dict[str, Any]:
    """Run real steps and return the peak of the arena's plan and the one that its last step reached."""
    model, arena, flow = MIM(config.method), Arena(), config.method.flow
    updates = [GroupOptimizer(*group, config.optim, device=CPU, fp16=False) for group in flow.partition(model).items()]
    size = config.method.encoder.image_size
    for step in range(4):
        images, ids = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8), torch.arange(batch) + step
        views = model.views(images, ids, 0)
        flow.step(model, [MicroBatch(images, views)], updates, slices=config.run.slices, scope=arena.scope)
    # The third step was replayed, and was over when the fourth began.
    return {"real_plan": arena.plan().peak, "measured": arena.stats().planned_reach}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.arena_table", description=__doc__)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--slices", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--measure", nargs="*", default=[])
    given = parser.parse_args(argv)
    names = given.recipes or [f"{method}_vit_{size}" for size in SIZES for method in ("mae", "bim")]
    rows: list[dict[str, Any]] = []
    for name in names:
        for slices in given.slices:
            config = RECIPES[name].config
            config = replace(config, run=replace(config.run, slices=slices, precision="fp32"))
            row = {"recipe": name, "batch": given.batch_size, "slices": slices} | planned(config, given.batch_size)
            if name in given.measure:
                row |= measured(config, given.batch_size)
            rows.append(row | {"paper": PAPER.get(name), "torch": torch.__version__})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    new = not RESULTS.exists()
    fields = (
        *("recipe", "batch", "slices", "activations", "planned", "bound", "gap", "real_plan", "measured", "paper"),
        "torch",
    )
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
