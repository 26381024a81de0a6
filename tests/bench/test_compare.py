"""Steps of several recipes in turns."""

import pytest
import torch

from bench import malloc
from bench.__main__ import main
from bench.entries.compare import compare_entry
from bench.entry import Case
from bench.refcheck import WrongResult

NAMES = ("greenmim_swin_tiny_test", "simmim_swin_tiny_test", "mae_vit_test")


@pytest.fixture
def warm(monkeypatch):
    for name, value in malloc.WARM.items():
        monkeypatch.setenv(name, value)


def test_the_first_is_compared_with_each_other_one(warm, capsys):
    assert main(["compare", *NAMES, "--quick", "--process-time", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, *_ = NAMES
    others = [f"{first} at 64 px, eager", "simmim_swin_tiny_test at 64 px", "mae_vit_test at 32 px"]
    others.append("mae_vit_test at 32 px, eager")
    for line, other in zip(lines[-4:], others, strict=True):
        assert line.startswith(f"{first} at 64 px against {other}: ")
        assert line.endswith(" of the live activations")


def test_each_is_held_to_its_own_losses():
    (case,) = compare_entry(NAMES, 2).cases(torch.device("cpu"), True)
    made = compare_entry(NAMES, 2).measure(case)
    expected = made.reference()
    assert list(expected) == list(NAMES)
    for provider, run in made.providers.items():
        made.check(provider, run(), expected)
    with pytest.raises(WrongResult, match="simmim_swin_tiny_test: losses"):
        made.check("simmim_swin_tiny_test", 1.01 * expected["simmim_swin_tiny_test"], expected)


def test_recipes_are_compared_without_eager_loops_where_these_are_not_wanted():
    entry = compare_entry(("mae_vit_test", "bim_vit_test"), 2, others=False)
    (case,) = entry.cases(torch.device("cpu"), True)
    assert list(entry.measure(case).providers) == ["mae_vit_test", "bim_vit_test"]


def test_operations_and_memory_are_counted_for_each():
    case = Case(
        device=torch.device("cpu"), dims={"recipes": ",".join(NAMES), "B": 2}, dtype="float32", pass_name="step"
    )
    made = compare_entry(NAMES, 2).measure(case)
    assert made.matrix_flops == made.flops(NAMES[0]) == made.flops(f"{NAMES[0]}, eager") < made.flops(NAMES[1])
    assert set(made.parameters) == set(made.providers)
