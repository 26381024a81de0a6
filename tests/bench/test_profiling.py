"""Where the time of a step goes: operators are told apart, and a whole run writes a table and a picture."""

import csv
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from bench import malloc
from bench.__main__ import main
from bench.profiling.parts import (
    ATTENTION,
    COPIES,
    GELU,
    MATRIX,
    NORM,
    OURS,
    PARTS,
    REST,
    SUMS,
    UPDATE,
    part_of,
    shares,
)
from bimkern.models.product import multiply


def event(*names, time=1.0):
    """An event, and those that called it, from the innermost on."""
    above = None
    for name in reversed(names):
        above = SimpleNamespace(name=name, cpu_parent=above, self_cpu_time_total=time)
    return above


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["aten::addmm", "aten::linear", "step"], MATRIX),
        (["aten::mm", "AddmmBackward0"], MATRIX),
        (["mkldnn::_linear_pointwise", "_OneDnnProduct"], MATRIX),
        (["aten::mm", "bimkern::match_total"], MATRIX),
        (["aten::_scaled_dot_product_flash_attention_for_cpu_backward"], ATTENTION),
        (["aten::copy_", "aten::_to_copy", "_AttentionBackward"], ATTENTION),
        (["aten::copy_", "aten::_to_copy", "step"], COPIES),
        (["aten::native_layer_norm_backward"], NORM),
        (["aten::gelu"], GELU),
        (["bimkern::masked_pixel_loss"], OURS),
        (["aten::empty", "bimkern::hog"], OURS),
        (["aten::fill_", "Optimizer.step#AdamW.step"], UPDATE),
        (["aten::add", "step"], SUMS),
        (["aten::view", "step"], REST),
        (["step"], REST),
    ],
)
def test_an_operator_is_of_a_part(names, part):
    assert part_of(event(*names)) == part


def test_shares_are_of_the_whole():
    found = shares([event("aten::mm", time=3.0), event("aten::gelu", time=1.0)])
    assert list(found) == list(PARTS)
    assert (found[MATRIX], found[GELU], sum(found.values())) == (0.75, 0.25, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_by_a_weight_is_one_in_whatever_library(dtype):
    x, weight = torch.randn(256, 1024, dtype=dtype), torch.randn(2048, 1024, dtype=dtype, requires_grad=True)
    ones = torch.ones(256, 2048, dtype=dtype)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            torch.autograd.grad(multiply(x, weight, None, None), weight, ones)
    assert shares(profiler.events())[MATRIX] > 0.6


def test_a_whole_run(monkeypatch, tmp_path, capsys):
    for name, value in malloc.WARM.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "profile.csv"
    assert main(["profile", "mae_vit_test", "localmim_vit_test", "--rounds", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:3]] == [["mae_vit_test", d] for d in ("float32", "bfloat16")]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["recipe"], row["dtype"]) for row in rows[1:3]] == [
        ("mae_vit_test", "bfloat16"),
        ("localmim_vit_test", "float32"),
    ]
    for row in rows:
        assert sum(float(row[part]) for part in PARTS) == pytest.approx(1, abs=2e-3)
        assert all(float(row[part]) > 0 for part in PARTS), row
        assert 0 < float(row["matrix_share"]) < 1.5
    with Image.open(out.with_suffix(".png")) as picture:
        assert (picture.width, picture.height < 600) == (900, True)


def test_an_unknown_recipe_is_refused(capsys):
    assert main(["profile", "vit"]) == 2
    assert capsys.readouterr().err.startswith("bench: no recipe is named 'vit'; choose from demo, ")
