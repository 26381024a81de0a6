"""Entries: each is complete, and nothing that computes something else is timed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.entries import loaders
from bench.entry import Case, Entry, Measure, discover
from bench.memory import extra_bytes
from bench.refcheck import WrongResult, equal_up_to_rounding
from bench.runner import Bench, prepare, rows
from bimkern.ops import backends, gather_tokens

CPU = torch.device("cpu")
ENTRIES = discover()
QUICK = [pytest.param(e, c, id=f"{e.name} {c.key}") for e in ENTRIES.values() for c in e.cases(CPU, True)]


@pytest.mark.parametrize(("entry", "case"), QUICK)
def test_every_provider_passes_its_check_and_the_work_is_counted(entry, case):
    measure, runs = prepare(entry, case)
    assert measure.rivals or entry.name == "loaders", "only DALI may be missing"
    assert next(iter(runs)) == measure.label
    assert measure.bytes or measure.matrix_flops or measure.items
    if entry.name in backends():
        assert measure.bytes, "an op has bytes to move"
        assert measure.reference is not None
        assert "compile" in measure.rivals or entry.name == "group_windows", "whose reference is a plan in Python"


def test_every_op_has_an_entry():
    assert set(backends()) <= set(ENTRIES)


@pytest.mark.parametrize("reason", [None, "not installed"])
def test_a_loader_drains_only_where_another_has_turns(reason, monkeypatch, capsys):
    monkeypatch.setattr(loaders.dali, "unusable", lambda: reason)
    monkeypatch.setattr(loaders, "Turn", lambda name, *_: SimpleNamespace(load=None, drain=name))
    case, _ = loaders.cases(CPU, True)
    measure = loaders.measure(case)
    assert dict(measure.before) == ({} if reason else {"pil": "pil", "dali": "dali"})
    assert list(measure.rivals) == ([] if reason else ["dali"])
    assert ("without DALI" in capsys.readouterr().err) == bool(reason)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_cases_differ_from_each_other(entry, device):
    keys = [case.key for case in entry.cases(torch.device(device), False)]
    assert keys
    assert len(set(keys)) == len(keys)
    assert entry.summary


def sum_entry(**changes):
    """An entry that adds two vectors, with one rival."""
    x = torch.randn(1000, requires_grad=True)
    given = {"ours": lambda: x + x, "rivals": {"torch": lambda: 2 * x}, "leaves": [x], "bytes": 8000}
    case = Case(device=CPU, dims={"N": 1000}, dtype="float32", pass_name="fwd+bwd")
    entry = Entry(name="sum", summary="", cases=lambda *_: [case], measure=lambda case: Measure(**given | changes))
    return entry, case


def test_rows_hold_together():
    entry, case = sum_entry()
    ours, rival = rows(Bench(device=CPU, quick=True), entry, case, {"torch": 3e-6})
    assert (ours.provider, ours.ratio, ours.ceiling) == ("ours", 1.0, "copy")
    assert rival.ratio == pytest.approx(rival.median_us / ours.median_us)
    assert ours.gb_per_s == pytest.approx(8000 / ours.median_us / 1e3)
    assert ours.share == pytest.approx(ours.gb_per_s / ours.ceiling_value)
    assert (ours.cold_median_us, rival.cold_median_us) == (None, pytest.approx(3.0))
    assert ours.rounds == rival.rounds


@pytest.mark.parametrize("wrong", [lambda x: x * 1.01, lambda x: x[:-1], lambda x: x * float("nan")])
def test_a_wrong_rival_is_not_timed(wrong):
    x = torch.ones(10, requires_grad=True)
    entry, case = sum_entry(ours=lambda: 2 * x, rivals={"torch": lambda: wrong(2 * x)}, leaves=[x])
    with pytest.raises((WrongResult, RuntimeError), match=r"sum fwd\+bwd float32 N=1000, torch: output 0 is|shape"):
        prepare(entry, case)


def test_a_wrong_gradient_is_not_timed():
    x = torch.ones(10, requires_grad=True)
    entry, case = sum_entry(ours=lambda: 2 * x, rivals={"torch": lambda: 2 * x.detach() + 0 * x}, leaves=[x])
    with pytest.raises(WrongResult, match="torch: output 1 is off by 1 of the largest value"):
        prepare(entry, case)
    prepare(entry, replace(case, pass_name="fwd"))


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ((torch.ones(3), torch.ones(3)), "x: 2 outputs, expected 1"),
        (torch.ones(4), r"x: output 0 is float32 \[4\], expected float32 \[3\]"),
        (torch.ones(3).double(), r"x: output 0 is float64 \[3\], expected float32 \[3\]"),
        (torch.tensor([1, 1, 1.001]), "x: output 0 is off by 0.001 of the largest value, allowed 1e-05"),
        (torch.tensor([1, 1, float("nan")]), "x: output 0 is off by nan of the largest value"),
    ],
)
def test_what_differs_is_said(got, message):
    with pytest.raises(WrongResult, match=message):
        equal_up_to_rounding("x", got, torch.ones(3))


def test_integers_must_be_equal():
    keep = torch.arange(1000)
    equal_up_to_rounding("x", keep, keep.clone())
    with pytest.raises(WrongResult, match="allowed 0"):
        equal_up_to_rounding("x", keep, keep + (keep == 5))


def test_extra_memory_counts_results_and_what_lives_beside_them():
    tokens, keep = torch.randn(2, 16, 32), torch.arange(4).expand(2, -1)
    result = 2 * 4 * 32 * 4
    few = 256  # scalars
    assert result <= extra_bytes(lambda: gather_tokens(tokens, keep), CPU) < result + few
    assert 2 * tokens.nbytes <= extra_bytes(lambda: (tokens + 1) * 2, CPU) < 2 * tokens.nbytes + few
    compiled = torch.compile(lambda x: (x + 1) * 2)
    compiled(tokens)
    assert tokens.nbytes <= extra_bytes(lambda: compiled(tokens), CPU) < tokens.nbytes + few
