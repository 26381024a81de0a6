"""The Triton kernels without a GPU: interpreted here, compiled for GPUs in test_triton_compiles.py."""

import os
import sys
from pathlib import Path

import commands
import pytest
import torch

from bimkern.ops import _backend

ROOT = Path(__file__).resolve().parents[2]
OPS = (
    *("group_attention_fwd", "group_attention_bwd", "masked_loss", "masked_loss_bwd"),
    *("masked_pixel_loss", "masked_pixel_loss_bwd", "pixel_targets"),
)


def run(*command, **environment):
    pytest.importorskip("triton")
    done = commands.run([sys.executable, *command], cwd=ROOT, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_interpreted_kernels_equal_their_references():
    files = "tests/ops/interpreted_triton.py", "tests/ops/interpreted_triton_attention.py"
    run("-m", "pytest", *files, "-p", "no:cacheprovider", TRITON_INTERPRET="1")


def test_random_cases_of_interpreted_kernels():
    run("tests/ops/fuzz_triton.py", "25", PYTHONPATH=str(ROOT))


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_kernel_on_cuda(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bimkern::{op}", "CUDA")


def test_without_triton_the_reference_serves_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    _backend._triton_missing.cache_clear()
    try:
        chosen = _backend.choice("masked_loss", "cuda")
        assert chosen.backend == "reference"
        assert chosen.fallback
        assert chosen.reason == "triton is not installed"
        assert _backend.choice("masked_loss", "cpu").backend == "native"
        monkeypatch.setenv("BIMKERN_BACKEND", "triton")
        with pytest.raises(_backend.BackendError, match="BIMKERN_BACKEND=triton, but triton is not installed"):
            _backend.choice("masked_loss", "cuda")
    finally:
        _backend._triton_missing.cache_clear()


def test_a_broken_triton_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "triton.py").write_text("raise RuntimeError('built for another Python')")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    _backend._triton_missing.cache_clear()
    try:
        assert _backend.choice("masked_loss", "cuda").reason == "triton cannot be imported: built for another Python"
    finally:
        _backend._triton_missing.cache_clear()


def test_with_triton_it_serves(monkeypatch):
    pytest.importorskip("triton")
    assert _backend.choice("masked_loss", "cuda") == _backend.Choice("triton", "has a kernel for cuda")
    monkeypatch.setenv("BIMKERN_BACKEND", "triton")
    assert _backend.choice("masked_loss", "cuda").backend == "triton"
    with pytest.raises(_backend.BackendError, match="there is no triton kernel for cuda"):
        _backend.choice("hog", "cuda")
