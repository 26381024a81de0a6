"""The command line: worth reading, and short with mistakes."""

import re
import sys

import pytest

from bimkern.pretrain import main

OPTIONS = (
    *("--help", "--data", "--out", "--epochs", "--steps", "--batch-size", "--micro-batch", "--slices", "--base-lr"),
    *("--precision", "--device", "--seed", "--loader", "--workers", "--max-bad-ratio"),
    *("--deterministic", "--compile", "--log-every", "--save-every", "--dry-run"),
)


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, capsys.readouterr()


def test_help_lists_recipes_examples_and_exactly_these_options(capsys):
    code, output = printed(capsys, "--help")
    assert code == 0
    assert "bim_vit_large_growing" in output.out
    assert "Examples:" in output.out
    found = re.findall(r"^\W*(?:-h, )?(--[a-z-]+)", output.out, flags=re.MULTILINE)
    assert tuple(found) == OPTIONS


def test_help_shows_the_defaults_of_the_recipe(capsys):
    _, output = printed(capsys, "bim_vit_base", "--help")
    assert "(default: 4096)" in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bim_vit_giant"], "unknown recipe 'bim_vit_giant'; choose one of demo, bim_vit_base, "),
        (["--data", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--data", ""], "--data is empty or the current folder; name the folder of images"),
        (["--precision", "int8"], "invalid choice 'int8' for argument '--precision'. Expected one of ('fp32', 'bf16'"),
        (["--stepz", "3"], "Unrecognized options: --stepz, 3"),
        (["--steps", "many"], "Error parsing --steps: no type matching {None}|INT could be instantiated from ['many']"),
        (["--dry-run", "mae_vit_base"], "Unrecognized options: mae_vit_base; the recipe comes first"),
        (["--out", "cache/bimkern/demo-v1/train/run"], "its pictures would be trained on"),
        (["--device", "cuda:77"], "--device cuda:77: this machine offers"),
        (["--max-bad-ratio", "1"], "--max-bad-ratio must be in [0, 1), got 1.0"),
        (["--dry-run", "--batch-size", "-4"], "--batch-size must be at least 1, got -4"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, output = printed(capsys, *arguments)
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_loader_that_is_not_there_is_a_mistake_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nvidia.dali.plugin.pytorch.torch_utils", None)
    test_a_mistake_is_one_line_and_exit_code_2(
        capsys, monkeypatch, tmp_path, ["--loader", "dali"], "--loader dali: DALI cannot be used (import of nvidia.dali"
    )


def test_dry_run_prints_what_would_be_done_and_writes_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    main(["bim_vit_base_growing", "--dry-run"])
    output = capsys.readouterr().out
    assert '"ratios": [' in output
    assert re.search(r"^loader +(PIL|DALI)", output, flags=re.MULTILINE)
    assert re.search(r"parameters +\d+\.\d+ M \(", output)
    assert "2.400e-03 at its peak, = 0.00015 * 4096 / 256" in output
    assert not (tmp_path / "runs").exists()


def test_a_backend_that_is_not_there_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BIMKERN_BACKEND", "triton")
    code, output = printed(capsys, "bim_vit_test")
    assert code == 2
    assert "BIMKERN_BACKEND=triton, but there is no triton kernel" in output.err
    assert output.err.count("\n") == 1
