"""The check of a GPU machine, without one: parts fail, hang and are refused, and the others continue."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import commands
import pytest
import torch

from bench import gpu_check, malloc, native, odd_shapes, results
from bench.__main__ import main
from bench.entry import discover
from bench.gpu_check import Part, parts, run_all, summary
from bimkern.ops import backends
from bimkern.ops._backend import Choice

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def python(name, code, **options):
    return Part(name=name, command=[sys.executable, "-c", code], limit=options.pop("limit", 60), **options)


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, capsys):
    chosen = [
        python("good", "import os; print('hello', os.environ['A'])", environment={"A": "b"}),
        python("bad", "raise SystemExit(3)"),
        python("hangs", "import time; print('started', flush=True); time.sleep(600)", limit=3),
        python(
            "refused",
            "print('Device not supported'); raise SystemExit(1)",
            may_be_absent=True,
            refusal="Device not supported",
        ),
        Part(name="absent", command=["no-such-program"], limit=1),
        Part(name="extra", command=["no-such-program"], limit=1, may_be_absent=True),
    ]
    outcomes = run_all(chosen, tmp_path, seconds=300)
    assert [outcome.result for outcome in outcomes] == [
        "passed",
        "failed: exit code 3",
        "failed: not done after 3 s",
        "not run: Device not supported",
        "failed: no-such-program is not on the PATH",
        "not run: no-such-program is not on the PATH",
    ]
    assert [outcome.failed for outcome in outcomes] == [False, True, True, False, True, False]
    assert (tmp_path / "good.log").read_text() == "hello b\n"
    assert capsys.readouterr().out.count("\n") == len(chosen)
    text = summary("a machine", outcomes, tmp_path / "cuda.csv")
    assert "| bad | failed: exit code 3 |" in text
    assert "Nothing was measured" in text


def test_only_the_sanitizer_and_dali_may_be_absent(tmp_path):
    chosen = parts(tmp_path, "90")
    (dali,) = [part for part in chosen if part.name == "dali-regions"]
    assert {part.command[0] for part in chosen if part.may_be_absent and part != dali} == {"compute-sanitizer"}
    assert dali.command[1:] == ["-m", "bimkern.data.regions", "cuda"]
    assert {part.command[0] for part in chosen if not part.may_be_absent} == {"make", "ctest", sys.executable}


def test_a_machine_without_dali_is_no_failure(tmp_path):
    (dali,) = [part for part in parts(tmp_path, "90") if part.name == "dali-regions"]
    (tmp_path / "nvidia.py").write_text("raise ModuleNotFoundError('no DALI', name='nvidia')")
    (outcome,) = run_all([replace(dali, environment={"PYTHONPATH": str(tmp_path)})], tmp_path, seconds=60)
    assert outcome.result == "not run: DALI cannot be used"


def test_every_entry_but_those_of_loading_has_a_part_of_its_own_and_steps_come_before_the_lesser(tmp_path):
    names = [part.name for part in parts(tmp_path, "90")]
    assert len(names) == len(set(names))
    entries = [name.removeprefix("bench-") for name in names if name.startswith("bench-")]
    assert set(entries) == set(discover()) - {"step", "cold_sources", "loaders", "packed", "sources"}
    assert names.index("steps") < names.index("bench-keep_to_mask")


def test_an_arena_has_a_process_of_its_own_and_is_watched(tmp_path):
    chosen = {part.name: part for part in parts(tmp_path, "90")}
    own, watched = chosen["arena-tests"], chosen["arena-memcheck"]
    assert own.environment == watched.environment == {"BIMKERN_TEST_GPU_ARENA": "1"}
    assert not own.may_be_absent
    assert watched.command[0] == "compute-sanitizer"
    files = [word for word in (*own.command, *watched.command) if word.startswith("tests/")]
    expected = {"tests/arena/test_arena.py", "tests/arena/test_streams.py", "tests/train/test_graphs.py"}
    assert set(files) == expected
    assert all((ROOT / file).exists() for file in files)


def test_an_op_off_its_kernel_is_a_failure(monkeypatch, capsys):
    monkeypatch.delenv("BIMKERN_BACKEND", raising=False)
    table = backends()
    missing = Choice("reference", "not built with CUDA", fallback=True)
    served = {op: {"cuda": Choice("native", "has a kernel for cuda")} for op in table} | {"hog": {"cuda": missing}}
    served["masked_loss"] = {"cuda": Choice("triton", "has a kernel for cuda")}
    monkeypatch.setattr(native, "backends", lambda: served)
    assert native.main([]) == 1
    assert capsys.readouterr().out == "hog: reference on cuda, expected a kernel: not built with CUDA\n"
    del served["hog"]
    assert native.main([]) == 0


def test_the_reference_asked_for_is_no_kernel_either(monkeypatch):
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    assert native.main(["cuda"]) == 1


def test_time_is_limited_for_all_together(tmp_path):
    (outcome,) = run_all([python("late", "pass")], tmp_path, seconds=0)
    assert outcome.result == "failed: no time was left"


def test_the_summary_shows_what_was_measured(tmp_path, monkeypatch):
    for name, value in malloc.WARM.items():  # else the process starts again
        monkeypatch.setenv(name, value)
    command = ["step", "mae_vit_test", "--quick", "--rounds", "1", "--no-cold", "--out", str(tmp_path / "cuda.csv")]
    assert main(command) == 0
    assert len(results.newest(tmp_path / "cuda.csv")) == 1
    *_, line = summary("a machine", [], tmp_path / "cuda.csv").splitlines()
    assert line.startswith("| step step float32 recipe=mae_vit_test B=4 | ")
    assert "of matrix |  |" in line  # a CPU has no MFU
    assert "eager " in line


def test_every_op_is_called_on_odd_shapes(device):
    assert set(odd_shapes.CALLS) == set(backends()), "a new op is to be entered in bench/odd_shapes.py"
    ways = sum(len(calls) for calls in odd_shapes.CALLS.values())
    twice = "embed_visible, gather_tokens, group_attention, masked losses, restore_tokens: two ways; match_loss: four"
    assert ways == len(odd_shapes.CALLS) + 9, twice
    assert odd_shapes.call_all(device) == ways * len(odd_shapes.SHAPES) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs_are_strided_and_aligned_to_nothing(device, dtype):
    tokens = odd_shapes.Inputs((2, 13, 5, 8), dtype, torch.device(device)).strided(2, 13, 8)
    assert tokens.shape == (2, 13, 8)
    assert not tokens.is_contiguous()
    assert tokens.data_ptr() % (4 * dtype.itemsize) != 0


def test_its_tests_need_no_package_of_the_commands(tmp_path):
    (tests,) = [part for part in parts(tmp_path, "90") if part.name == "tests"]
    for name in ("tyro", "nvidia"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [*tests.command, "--collect-only", "-p", "no:cacheprovider"]
    done = commands.run(command, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout
    assert "test_gather_tokens.py" in done.stdout
    # A test that only a GPU can run is among them, by the name that its fixture gives it.
    for name in ("what_is_gathered_on_a_gpu[cuda-beyond]", "a_gpu_decodes_every_kind_alike[cuda-True]"):
        assert name in done.stdout


def test_only_a_fixture_that_names_the_device_skips_for_want_of_a_gpu():
    """By `cuda` in the name of a test the check selects it."""
    unnamed = re.compile(r"not torch\.cuda\.is_available\(\)")
    skips = [path.relative_to(TESTS) for path in TESTS.rglob("*.py") if unnamed.search(path.read_text())]
    assert skips == [Path("conftest.py")]


def test_every_file_that_is_left_out_is_there():
    assert all((ROOT / path).exists() for path in gpu_check._WITHOUT_GPU_CASES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 2
    assert "make gpu-dry" in capsys.readouterr().err
