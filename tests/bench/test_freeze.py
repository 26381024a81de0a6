"""Steps with frozen units: what is not run for them, and what a schedule is said to save."""

from dataclasses import replace

import pytest
import torch

from bench.entries.freeze import measure, savings
from bench.entry import Case, Entry
from bench.flops import step_flops
from bench.refcheck import WrongResult
from bench.report import case as layout
from bench.runner import Bench, rows
from bimkern.models.heads import TransformerDecoder
from bimkern.recipes import RECIPES

CPU = torch.device("cpu")
RECIPE = "vitfreeze_vit_test"  # eight layers, heads behind units 2, 4, 6 and 8
CASE = Case(device=CPU, dims={"recipe": RECIPE, "B": 2}, dtype="float32", pass_name="step")


@pytest.fixture(scope="module")
def made():
    return measure(CASE)


def test_all_numbers_that_the_schedule_comes_to(made):
    assert list(made.providers) == [f"{units} frozen" for units in range(9)]


def test_heads_of_frozen_taps_are_not_run(made, monkeypatch):
    decoded = []
    for name in ("features", "chosen_features"):  # of all patches, or of the masked ones
        method = getattr(TransformerDecoder, name)
        noted = lambda *given, method=method: decoded.append(given[0]) or method(*given)  # noqa: E731
        monkeypatch.setattr(TransformerDecoder, name, noted)
    counts = []
    for run in made.providers.values():
        decoded.clear()
        run()
        counts.append(len(decoded))
    assert counts == [4, 4, 4, 3, 3, 2, 2, 1, 1]


def test_losses_must_be_missing_where_heads_are_frozen(made):
    whole, partly, truth = made.ours(), made.rivals["5 frozen"](), made.reference()
    made.check("0 frozen", whole, truth)
    made.check("5 frozen", partly, truth)
    for provider, losses, dropped in (("5 frozen", whole, 2), ("0 frozen", partly, 0)):
        with pytest.raises(WrongResult, match=rf"{provider}: losses \[.*\], expected {dropped} of NaN"):
            made.check(provider, losses, truth)
    with pytest.raises(WrongResult, match=r"5 frozen: losses \[.*\], expected \[.*\] within 1e-04"):
        made.check("5 frozen", 1.01 * partly, truth)


def test_rows_have_their_own_operations_and_live_bytes(made):
    entry = Entry(name="freeze", summary="", cases=lambda *_: [CASE], measure=lambda _: made)
    measured = rows(Bench(device=CPU, quick=True, rounds=1), entry, CASE, {})
    method = RECIPES[RECIPE].config.method
    for units, row in enumerate(measured):
        assert row.gflop_per_item == pytest.approx(step_flops(method, units) / 1e9)
        assert row.tflop_per_s == pytest.approx(row.gflop_per_item * row.items_per_s / 1e3)
    live = [row.live_bytes for row in measured]
    assert live == sorted(live, reverse=True)
    assert live[8] < 0.4 * live[0]
    assert "GFLOP/image" in layout(measured)
    assert layout(measured).count("  live ") == 9


def test_savings_of_seconds_are_held_to_those_of_operations(made):
    entry = Entry(name="freeze", summary="", cases=lambda *_: [CASE], measure=lambda _: made)
    method = RECIPES[RECIPE].config.method
    measured = rows(Bench(device=CPU, quick=True, rounds=1), entry, CASE, {})
    operations = [step_flops(method, units) / step_flops(method) for units in range(9)]
    ideal = [replace(row, ratio=ratio) for row, ratio in zip(measured, operations, strict=True)]
    assert savings(CASE, ideal).splitlines()[-1] == (
        "over the schedule 17.2% of the operations are saved, and 17.2% of the seconds (+0.0 points)"
    )
    slower = [replace(row, ratio=1.0) for row in measured]
    assert savings(CASE, slower).endswith("and 0.0% of the seconds (-17.2 points)")
    assert len(savings(CASE, ideal).splitlines()) == 1 + 9 + 1
