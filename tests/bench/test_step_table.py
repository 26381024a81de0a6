"""The table of steps: a line for every recipe, and the comparisons of those that are there."""

from dataclasses import replace

import torch
from measured import ROW

from bench.entry import Case
from bench.step_table import table

STEP = replace(ROW, op="step", pass_="step", share=0.5, items_per_s=10.0, gflop_per_item=40.0, live_bytes=2**20)
SLICED = replace(STEP, provider="ours, 4 slices", items_per_s=9.0, live_bytes=2**19)
EAGER = replace(STEP, provider="eager", ratio=1.25)


def measured(**recipes):
    return [
        (Case(device=torch.device("cpu"), dims={"recipe": name, "B": 4}, dtype="float32", pass_name="step"), rows)
        for name, rows in recipes.items()
    ]


def test_a_line_for_every_recipe():
    title, head, mae, simmim = table(measured(mae_vit_base=[STEP, SLICED, EAGER], simmim_vit_base=[STEP])).splitlines()
    assert title.startswith("steps of float32, B=4")
    assert head.split()[0] == "recipe"
    assert " ".join(mae.split()) == "mae_vit_base 224 10 40 50% 1 MiB 9 512 KiB 1.25"
    assert " ".join(simmim.split()) == "simmim_vit_base 224 10 40 50% 1 MiB - - none written"
    assert len({len(line) for line in (head, mae, simmim)}) == 1


def test_fastmim_is_compared_with_those_that_are_there():
    fast = replace(STEP, items_per_s=30.0, gflop_per_item=10.0, live_bytes=2**18)
    *_, one, two = table(measured(fastmim_vit_base=[fast], mae_vit_base=[STEP], simmim_vit_base=[STEP])).splitlines()
    rest = "3.00 times the images/s, 0.25 of the operations, 0.25 of the live activations"
    assert one == f"fastmim_vit_base at 128 px against mae_vit_base at 224 px: {rest}"
    assert two == f"fastmim_vit_base at 128 px against simmim_vit_base at 224 px: {rest}"
    assert "against" not in table(measured(fastmim_vit_base=[fast]))
