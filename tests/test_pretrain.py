"""The command line: worth reading, and short with mistakes."""

import importlib
import os
import re
import sys
from pathlib import Path

import commands
import pytest
import torch
from caches import empty_cache

from bimkern.pretrain import main
from bimkern.recipes import FAMILIES, RECIPES

OPTIONS = (
    *(
        "--help",
        "--show",
        "--dry-run",
        "--config",
        "--backbone",
        "--import",
        "--set",
        "--image-size",
        "--patch-size",
        "--mask-ratio",
    ),
    *("--blocks", "--decoder-depth", "--warmup-epochs", "--weight-decay", "--clip", "--crop-scale", "--mean", "--std"),
    *("--data", "--out", "--epochs", "--steps", "--extend", "--batch-size", "--micro-batch", "--base-lr"),
    *(
        "--optimizer",
        "--precision",
        "--attention",
        "--device",
        "--seed",
        "--loader",
        "--cache",
        "--jpeg-draft",
        "--workers",
        "--range",
        "--held-out",
        "--max-bad-ratio",
        "--max-pixels",
    ),
    *("--deterministic", "--compile", "--arena", "--shard", "--dist-timeout", "--log", "--log-every", "--save-every"),
    *("--slices", "--recompute", "--teacher", "--init", "--alpha", "--normalize"),
    *("--cuda-graphs", "--target-stream", "--pipeline"),
)


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, capsys.readouterr()


def test_help_lists_recipes_examples_and_exactly_these_options(capsys):
    code, output = printed(capsys, "--help")
    assert code == 0
    for name in RECIPES:
        assert re.search(rf"^ +.*\b{name}\b", output.out, flags=re.MULTILINE), name
    for family in FAMILIES:
        assert re.search(rf"^  {family}:$", output.out, flags=re.MULTILINE), family
    assert "Examples:" in output.out
    found = re.findall(r"^\W*(?:-h, )?(--[a-z][a-z-]*)", output.out, flags=re.MULTILINE)
    assert tuple(found) == OPTIONS


def test_help_shows_the_defaults_of_the_recipe(capsys):
    _, output = printed(capsys, "bim_vit_base", "--help")
    assert "(default: 4096)" in output.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["byol"],
            "unknown recipe 'byol' (your own is named as my_file.py:my_recipe or my_package",
        ),
        (["bim_vit_larg"], "; did you mean bim_vit_large, "),
        (["bim_vit_test", "--batch-size", "30", "--slices", "64"], "--slices must be at most the images of a step, -"),
        (["--data", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--data", "x" * 300], f"{'x' * 300} cannot be read (File name too long)"),
        (["--data", f"{'x' * 300}.tar"], f"{'x' * 300}.tar: File name too long"),
        (["--init", "x" * 300], ": File name too long"),
        ([f"{'x' * 300}.py:own"], ": File name too long"),
        (["--data", "nothing://b/x"], "nothing://b/x cannot be reached (Protocol not known: nothing)"),
        (["--out=gs://b/x"], "gs://b/x is an address; give the path of a local file or folder"),
        (["--data", ""], "--data is empty or the current folder; name the folder of images"),
        (["--precision", "int8"], "--precision must be one of fp32, bf16, fp16, got 'int8'"),
        (["--stepz", "3"], "there is no option --stepz; did you mean --steps"),
        (["--impor=x"], "there is no option --impor; did you mean --import"),
        (["--zzz"], "there is no option --zzz; see --help"),
        (["--steps", "many"], "--steps must be an integer or none, got 'many'"),
        (["--steps", "3", "--epochs=2"], "--epochs and --steps both say how long the run is; give one of them"),
        (["--dry-run", "mae_vit_base"], "Unrecognized options: mae_vit_base; the recipe comes first"),
        (["--out", "cache/bimkern/demo-v1/train/run"], "its pictures would be trained on"),
        (["--device", "cuda:77"], "--device cuda:77: this machine offers"),
        (["--max-bad-ratio", "1"], "pretrain: --max-bad-ratio must be in [0, 1), got 1.0"),
        (["--data", "--steps", "3"], "--data must name a folder, got none"),
        (["--max-pixels", "0"], "--max-pixels must be at least 1, got 0"),
        (["--jpeg-draft", "0.5"], "--jpeg-draft must be 0 (off) or at least 1 and finite, got 0.5"),
        (["--jpeg-draft", "inf"], "--jpeg-draft must be 0 (off) or at least 1 and finite, got inf"),
        (["--data", "a", "--data=b"], "--data is given 2 times; give it once"),
        (["--micro-batch=2", "--steps", "3", "--micro_batch", "4"], "--micro-batch is given 2 times; give it once"),
        (["--dry-run", "--batch-size", "-4"], "--batch-size must be at least 1, got -4"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path / "cache"))
    code, output = printed(capsys, *arguments)
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_world_size_without_ranks_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = (
        "WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start several ranks with torchrun "
        "--nproc-per-node N -m bimkern.pretrain ..., or unset WORLD_SIZE"
    )
    test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, [], message)


def test_a_loader_that_is_not_there_is_a_mistake_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nvidia.dali.plugin.pytorch.torch_utils", None)
    test_a_mistake_is_one_line_and_exit_code_2(
        capsys, monkeypatch, tmp_path, ["--loader", "dali"], "--loader dali: DALI cannot be used (import of nvidia.dali"
    )


@pytest.mark.parametrize(
    ("option", "name", "module", "message"),
    [
        ("--attention", "xformers", "xformers.ops", "not installed; it takes an NVIDIA GPU and pip install 'bimkern[x"),
        ("--optimizer", "apex_adam", "apex", "not installed; NVIDIA's apex is built from https://github.com/NVIDIA/ap"),
        ("--optimizer", "apex_lamb", "apex", "not installed; NVIDIA's apex is built from https://github.com/NVIDIA/ap"),
    ],
)
def test_a_package_that_is_not_there_is_a_mistake_too(capsys, monkeypatch, tmp_path, option, name, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    test_a_mistake_is_one_line_and_exit_code_2(
        capsys, monkeypatch, tmp_path, [option, name], f"{option} {name}: {message}"
    )


def test_another_package_of_the_name_is_rejected(capsys, monkeypatch, tmp_path, standins):
    (tmp_path / "apex.py").write_text("__version__ = '0.9'\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = "--optimizer apex_adam: a package of this name is installed, but it is not NVIDIA's; NVIDIA's apex is"
    arguments = ["--optimizer", "apex_adam"]
    test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message)


def test_a_package_without_the_kernels_it_needs_is_a_mistake(capsys, monkeypatch, tmp_path, standins):
    def no_extensions(*_, **__):
        raise RuntimeError("apex.optimizers.FusedLAMB requires cuda extensions")

    monkeypatch.setattr(importlib.import_module("apex.optimizers"), "FusedLAMB", no_extensions)
    message = "apex_lamb: does not run on cpu (apex.optimizers.FusedLAMB requires cuda extensions); NVIDIA's apex is"
    arguments = ["--optimizer", "apex_lamb", "--device", "cpu"]
    test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message)


def test_attention_without_a_kernel_for_the_run_is_a_mistake(capsys, monkeypatch, tmp_path, standins):
    def no_kernel_that_repeats(query, key, value):
        if torch.are_deterministic_algorithms_enabled():
            raise NotImplementedError("No operator found for inputs:\n  query: [1, 8, 1, 32]")
        return query

    monkeypatch.setattr(importlib.import_module("xformers.ops"), "memory_efficient_attention", no_kernel_that_repeats)
    torch.use_deterministic_algorithms(False)
    arguments = ["--attention", "xformers", "--device", "cpu", "--precision", "fp16"]
    main([*arguments, "--dry-run"])
    capsys.readouterr()
    message = "--attention xformers: does not run on cpu in torch.float16 (No operator found for inputs); it takes an"
    test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, [*arguments, "--deterministic"], message)
    assert not torch.are_deterministic_algorithms_enabled()


IMPORTED = """
import sys
from bimkern.pretrain import main

for options in (["--steps", "1"], ["--optimizer", "apex_adam", "--dry-run"]):
    main(["mae_vit_test", "--device", "cpu", "--out", sys.argv[1], *options])
    print("imported:", *sorted({"apex", "xformers"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What a process has imported after a run of the defaults, and then after one that asks for more."""
    paths = os.pathsep.join([str(Path(__file__).parent / "helpers" / "standins"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", IMPORTED, tmp_path_factory.mktemp("imports") / "run"]
    environment = os.environ | {"PYTHONPATH": paths}
    ran = commands.run(command, env=environment, check=True)
    return [line.split()[1:] for line in ran.stdout.splitlines() if line.startswith("imported:")]


@pytest.mark.parametrize(("run", "expected"), [(0, []), (1, ["apex"])], ids=["default", "asked for"])
def test_nothing_optional_is_imported_unless_asked_for(imported, run, expected):
    assert imported[run] == expected


def test_dry_run_prints_what_would_be_done_and_writes_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path / "cache"))
    main(["bim_vit_base_growing", "--dry-run"])
    output = capsys.readouterr().out
    assert '"ratios": [' in output
    assert re.search(r"^loader +(PIL|DALI)", output, flags=re.MULTILINE)
    assert re.search(r"parameters +\d+\.\d+ M \(", output)
    assert "2.400e-03 at its peak, = 0.00015 * 4096 / 256" in output
    assert not (tmp_path / "runs").exists()


def test_epochs_replace_the_steps_of_a_recipe(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path / "cache"))
    main(["bim_vit_test", "--dry-run", "--batch-size", "2", "--epochs", "2"])
    assert re.search(r"^steps +13 of 2 images$", capsys.readouterr().out, flags=re.MULTILINE)


def test_a_backend_that_is_not_there_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path / "cache"))
    monkeypatch.setenv("BIMKERN_BACKEND", "triton")
    code, output = printed(capsys, "bim_vit_test")
    assert code == 2
    assert "BIMKERN_BACKEND=triton, but there is no triton kernel" in output.err
    assert output.err.count("\n") == 1
