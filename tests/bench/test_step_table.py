"""The table of steps: a line for every recipe, and the comparisons of those that are there."""

from dataclasses import replace

import torch
from measured import ROW

from bench.eager import hf_loop
from bench.entry import Case
from bench.step_table import table

STEP = replace(ROW, op="step", pass_="step", median_us=90.0, share=0.5, items_per_s=10.0)
STEP = replace(STEP, gflop_per_item=40.0, live_bytes=2**20)
SLICED = replace(STEP, provider="ours, 4 slices", median_us=100.0, live_bytes=2**19)
EAGER = replace(STEP, provider="eager", median_us=112.5)


def measured(**recipes):
    return [
        (Case(device=torch.device("cpu"), dims={"recipe": name, "B": 4}, dtype="float32", pass_name="step"), rows)
        for name, rows in recipes.items()
    ]


def test_a_line_for_every_recipe():
    rows = {"bim_vit_base": [STEP, SLICED, EAGER], "simmim_vit_base": [STEP]}
    title, head, bim, simmim = table(measured(**rows)).splitlines()
    assert title.startswith("steps of float32, B=4")
    assert head.split()[0] == "recipe"
    assert " ".join(bim.split()) == "bim_vit_base 224 10 40 50% 1 MiB 1.11 512 KiB 1.25 none"
    assert " ".join(simmim.split()) == "simmim_vit_base 224 10 40 50% 1 MiB - - none none"
    assert len({len(line) for line in (head, bim, simmim)}) == 1


def test_fastmim_is_compared_with_those_that_are_there():
    fast = replace(STEP, items_per_s=30.0, gflop_per_item=10.0, live_bytes=2**18)
    *_, one, two = table(measured(fastmim_vit_base=[fast], mae_vit_base=[STEP], simmim_vit_base=[STEP])).splitlines()
    rest = "1.000 of the time, 3.00 times the images/s, 0.25 of the operations, 0.25 of the live activations"
    assert one == f"fastmim_vit_base at 128 px against mae_vit_base at 224 px: {rest}"
    assert two == f"fastmim_vit_base at 128 px against simmim_vit_base at 224 px: {rest}"
    assert "against" not in table(measured(fastmim_vit_base=[fast]))


def test_cpu_time_is_what_ratios_are_of():
    ours, sliced, eager, hf = (
        replace(row, process_median_us=time)
        for row, time in ((STEP, 10.0), (SLICED, 11.0), (EAGER, 12.0), (replace(EAGER, provider="hf"), 15.0))
    )
    title, _, mae = table(measured(mae_vit_base=[ours, sliced, eager, hf])).splitlines()[:3]
    assert title.endswith("; times over ours in CPU time")
    assert mae.split()[-5:] == ["1.10", "512", "KiB", "1.20", "1.50"]


def test_a_step_that_recomputes_is_compared_with_the_same_one_that_does_not():
    again = replace(STEP, provider="ours, 4 slices, recomputed: layers", process_median_us=11.0, live_bytes=2**18)
    rows = [replace(STEP, process_median_us=9.0), replace(SLICED, process_median_us=10.0), again]
    line = table(measured(bim_vit_base=rows)).splitlines()[-1]
    assert line == (
        "bim_vit_base at 224 px, ours, 4 slices, recomputed: layers: 1.100 of the time, "
        "0.500 of the live activations of ours, 4 slices"
    )
    alone = replace(again, provider="ours, recomputed: 1")
    assert table(measured(bim_vit_base=[rows[0], alone])).splitlines()[-1].endswith("of the live activations of ours")


def test_a_rival_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(hf_loop, "unusable", lambda: "not installed")
    line = "hf, Hugging Face's ViTMAE, is left out: transformers: not installed"
    assert line in table(measured(mae_vit_base=[STEP])).splitlines()
    assert line not in table(measured(bim_vit_base=[STEP], simmim_vit_base=[STEP])).splitlines()
