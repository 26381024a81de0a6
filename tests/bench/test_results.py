"""The CSV file: what a row is keyed by, and what happens to rows of other times and versions."""

import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from measured import ROW

from bench import picture, results
from bench.results import COLUMNS, KEY, ResultsError, Row

ROOT = Path(__file__).resolve().parents[2]

RIVAL = replace(ROW, provider="torch", backend="", ratio=2.0, median_us=24.7, share=0.25)
LATER = {"date": "2026-01-02T00:00:00+00:00", "commit": "def"}


def test_a_row_has_all_that_it_is_keyed_by():
    assert set(KEY) <= set(COLUMNS)
    assert len(COLUMNS) == len(fields(Row))


def test_rows_come_back_as_they_went(tmp_path):
    path = tmp_path / "new" / "cpu.csv"
    results.append(path, [ROW, RIVAL])
    results.append(path, [replace(ROW, pass_="fwd+bwd")])
    (first, second), (third,) = results.newest(path)
    assert (first["provider"], second["provider"], third["pass"]) == ("ours", "torch", "fwd+bwd")
    assert (first["median_us"], first["cold_median_us"], first["extra_bytes"]) == ("12.3457", "", "64")


def test_rows_of_before_there_was_a_column_are_read(tmp_path):
    path = tmp_path / "cpu.csv"
    results.append(path, [ROW])
    path.write_text(path.read_text().rstrip().removesuffix(",") + "\n")
    results.append(path, [replace(ROW, pass_="step", process_median_us=2.5)])
    assert [case[0]["process_median_us"] for case in results.newest(path)] == ["", "2.5"]


def test_a_later_run_replaces_a_case_with_all_its_providers(tmp_path):
    path = tmp_path / "cpu.csv"
    results.append(path, [ROW, RIVAL])
    results.append(path, [replace(ROW, median_us=5.0, **LATER)])
    ((row,),) = results.newest(path)
    assert (row["median_us"], row["commit"]) == ("5", "def")


@pytest.mark.parametrize("other", [{"device_name": "another processor"}, {"threads": 8}])
def test_machines_do_not_mix(tmp_path, other):
    path = tmp_path / "cpu.csv"
    results.append(path, [ROW, RIVAL])
    results.append(path, [replace(ROW, **other, **LATER)])
    assert [[row["provider"] for row in case] for case in results.newest(path)] == [["ours", "torch"], ["ours"]]
    assert picture.draw(path) == f"{tmp_path / 'cpu_ops.png'}: 2 cases"


def test_other_columns_are_left_alone(tmp_path):
    path = tmp_path / "cpu.csv"
    path.write_text("op,time\ngather,1\n")
    with pytest.raises(ResultsError, match=r"cpu\.csv: has other columns than this version writes"):
        results.append(path, [ROW])
    assert path.read_text() == "op,time\ngather,1\n"


@pytest.mark.parametrize(("text", "message"), [(None, "no such file"), (",".join(COLUMNS) + "\n", "holds no rows")])
def test_nothing_to_read_is_said(tmp_path, text, message):
    path = tmp_path / "cpu.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        results.newest(path)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_commit_is_dirty_but_for_results(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    def commit():
        results.commit.cache_clear()
        return results.commit(tmp_path)

    assert commit() == "unknown"
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "start")
    clean = commit()
    assert clean.isalnum()
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "bench" / "results" / "cpu.csv").write_text("rows")
    assert commit() == clean
    (tmp_path / "kernel.cu").write_text("changed")
    assert commit() == f"{clean}-dirty"


def test_provenance_is_part_of_a_row():
    found = results.provenance(torch.device("cpu"))
    assert set(found) <= set(COLUMNS)
    assert all(str(value) for value in found.values())


def test_a_rival_far_slower_leaves_the_others_to_be_seen():
    axes = Figure().subplots()
    slow = [{column: str(getattr(row, column.replace("pass", "pass_"))) for column in COLUMNS} for row in (ROW, RIVAL)]
    slow[1]["ratio"] = "150"
    picture._draw_times(axes, [slow])
    ours, rival = (bar.get_window_extent().width for bar in axes.patches)
    assert ours > 0.1 * rival
    assert axes.patches[1].get_x() + axes.patches[1].get_width() == pytest.approx(150)


def test_matplotlib_is_imported_only_for_a_picture():
    """And --help imports no package of a GPU, of a loader or of a test either: it would wait for seconds."""
    code = """
import contextlib, sys
import bench.__main__, bench.gpu_check
from bimkern import export, info, plan, pretrain
with contextlib.suppress(SystemExit):
    pretrain.main(["--help"])
heavy = {"matplotlib", "triton", "nvidia", "torchvision", "timm", "transformers", "scipy", "skimage", "sklearn"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--save-every" in done.stdout


def test_a_picture_shows_one_case_of_every_op_and_one_every_recipe(tmp_path):
    path = tmp_path / "cpu.csv"
    step = replace(ROW, op="step", pass_="step", items_per_s=2.0)
    steps = [replace(step, shape="recipe=mae B=8"), replace(step, shape="recipe=bim B=8", process_median_us=9.0)]
    unlimited = replace(ROW, op="calls", share=None, ceiling="", ceiling_value=None)
    compared = replace(ROW, op="compare", pass_="step")
    others = [replace(ROW, shape="B=8 N=16"), replace(ROW, dtype="bfloat16"), unlimited, compared, *steps]
    results.append(path, [ROW, RIVAL, *others])
    lines = picture.draw(path).splitlines()
    assert lines == [f"{tmp_path / 'cpu_ops.png'}: 1 case", f"{tmp_path / 'cpu_steps.png'}: 2 cases"]
    for name in ("cpu_ops.png", "cpu_steps.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_picture_shows_the_pass_with_gradients(tmp_path):
    path = tmp_path / "cpu.csv"
    with_gradients = [replace(row, pass_="fwd+bwd") for row in (ROW, RIVAL)]
    results.append(path, [ROW, RIVAL, *with_gradients, replace(ROW, dtype="bfloat16", pass_="fwd+bwd")])
    ((first, _),) = picture._one_case_per_op(results.newest(path))
    assert (first["pass"], first["dtype"]) == ("fwd+bwd", "float32")


def test_steps_are_titled_by_what_differs():
    row = {"dtype": "float32", "threads": "1", "shape": "recipe=mae B=8"}
    assert picture._step_title(row, {"recipe": "mae"}, several=False) == "mae"
    assert picture._step_title(row, {"recipe": "mae"}, several=True) == "mae (threads: 1)"
    assert picture._step_title(row | {"dtype": "bfloat16"}, {}, several=False) == "recipe=mae B=8 (bfloat16)"
