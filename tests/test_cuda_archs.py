"""For which GPUs the CUDA kernels are compiled: csrc/cuda_archs.cmake, by a nvcc that need not be there."""

from pathlib import Path

import commands
import pytest

FILE = Path(__file__).resolve().parent.parent / "csrc" / "cuda_archs.cmake"
KNOWN = ";".join(f"compute_{arch}" for arch in (75, 80, 86, 90, 100, 120))


def archs(folder, call):
    lines = ("cmake_minimum_required(VERSION 3.22)", f'include("{FILE}")', call, 'message("${archs}")')
    (folder / "script.cmake").write_text("\n".join(lines))
    command = ["cmake", "-P", folder / "script.cmake"]
    done = commands.run(command, timeout=60)
    if done.returncode != 0:
        raise ValueError(" ".join(done.stderr.split()))
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all", "80;90;100"),
        ("90 80", "80;90"),
        ("8.6, sm_120;12.0", "86;120"),
        ("100 9.0", "90;100"),
    ],
)
def test_architectures_are_named_in_any_common_way(tmp_path, wanted, expected):
    assert archs(tmp_path, f'chosen_archs(archs "{wanted}" "{KNOWN}")') == expected
    assert archs(tmp_path, f'chosen_archs(archs "{wanted}" "")') == expected


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [
        ("80 hopper", "expected 'all' or architectures as '80 90', got 'hopper'"),
        ("all 90", "expected 'all' or architectures as '80 90', got 'all'"),
        ("sm_90a", "expected 'all' or architectures as '80 90', got 'sm_90a'"),
        ("80 130", "this nvcc does not know sm_130, only compute_75 compute_80"),
        ("8", "expected 'all' or architectures as '80 90', got '8'"),
    ],
)
def test_what_cannot_be_compiled_for_is_refused(tmp_path, wanted, refusal):
    with pytest.raises(ValueError, match=f"BIMKERN_CUDA_ARCHS: {refusal}"):
        archs(tmp_path, f'chosen_archs(archs "{wanted}" "{KNOWN}")')


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("9.0;9.0", "90"),
        ("12.0;8.0", "80;120"),
        ("8.9", "86"),  # of the same major architecture
        ("11.0", "100"),  # by its PTX
        ("12.1;13.0", "120"),
    ],
)
def test_a_gpu_newer_than_nvcc_is_served_by_the_newest_that_it_knows(tmp_path, gpus, expected):
    assert archs(tmp_path, f'archs_for_gpus(archs "{gpus}" "{KNOWN}")') == expected


def test_a_compiler_that_does_not_say_what_it_knows_is_trusted(tmp_path):
    assert archs(tmp_path, 'archs_for_gpus(archs "12.1;8.0" "")') == "80;121"
