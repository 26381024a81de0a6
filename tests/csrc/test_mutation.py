"""Inserted faults count as noticed by what the random cases find, not because the kernel no longer compiles."""

import importlib.util
import shutil
from pathlib import Path

import mutation
import pytest


def script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, mutation.ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_words_of_no_fault_are_refused(capfd):
    assert mutation.main(["no such", "fault"]) == 1
    assert capfd.readouterr().err == "error: no fault's name has one of: no such, fault\n"


def test_a_script_without_a_fault_of_the_words_is_no_failure(monkeypatch, tmp_path):
    found = tmp_path / "found.py"
    found.write_text("")
    monkeypatch.setattr(mutation, "SCRIPTS", (*mutation.SCRIPTS, found))
    assert mutation.main(["no such fault"]) == 0


def test_a_triton_kernel_that_does_not_compile_is_not_noticed(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    mutants = script("tests/ops/triton_mutants.py")
    for folder in ("bimkern", "bench", "tests/ops"):
        shutil.copytree(
            mutants.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    monkeypatch.setattr(mutants, "TREE", tmp_path)
    monkeypatch.setattr(mutants, "ROUNDS", 1)
    fault = mutants.Fault("pixel_targets", "no name", "tl.arange(0, BLOCK)", "tl.no_name(0, BLOCK)")
    with pytest.raises(SystemExit, match="has no attribute 'no_name'"):
        mutation.check([fault], tmp_path, lambda fault: mutants.run(fault.op))


def test_traffic_that_is_not_counted_is_not_noticed(monkeypatch, tmp_path):
    mutants = script("tests/csrc/host_cuda/mutants.py")
    monkeypatch.setattr(mutants, "WORK", tmp_path)
    (tmp_path / "tree").symlink_to(mutants.ROOT, target_is_directory=True)
    monkeypatch.setenv("PATH", str(tmp_path))  # which has no cmake
    with pytest.raises(SystemExit, match="bench: cmake was not found"):
        mutants.run(mutants.TRAFFIC, "hog")
