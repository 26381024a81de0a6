import logging
import os
import shutil
import sys
from pathlib import Path

import commands
import pytest
import torch

import bimkern
from bimkern import ops
from bimkern.ops import _backend

PACKAGE = Path(bimkern.__file__).parent
KEEP = torch.tensor([[0, 2]])

ONE_CALL = """
import torch
from bimkern import ops
tokens = torch.randn(1, 3, 4, requires_grad=True)
for _ in range(2):
    ops.gather_tokens(tokens, torch.tensor([[0, 2]])).sum().backward()
print(ops.backends()["gather_tokens"]["cpu"])
"""
COMPILED = """
torch.compile(ops.gather_tokens, fullgraph=True, backend="eager")(tokens, torch.tensor([[0, 2]]))
"""


@pytest.fixture
def package_without_library(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "bimkern", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def run_in(folder, code, **environment):
    environment = os.environ | {"PYTHONPATH": str(folder)} | environment
    return commands.run([sys.executable, "-c", code], cwd=folder, env=environment)


def test_without_the_library_ops_run_on_the_reference_and_say_so_once(package_without_library):
    done = run_in(package_without_library, ONE_CALL + COMPILED)
    assert done.returncode == 0, done.stderr
    assert "backend='reference', reason='the native library was not built" in done.stdout
    assert done.stderr.count("gather_tokens runs on the reference for cpu: the native library was not built") == 1


def test_a_broken_library_is_a_reason_and_no_crash(package_without_library):
    (package_without_library / "bimkern" / "_native.so").write_bytes(b"not a library")
    done = run_in(package_without_library, ONE_CALL)
    assert done.returncode == 0, done.stderr
    assert "the native library cannot be loaded" in done.stdout


def test_forcing_a_missing_library_raises(package_without_library):
    done = run_in(package_without_library, ONE_CALL, BIMKERN_BACKEND="native")
    assert done.returncode != 0
    assert "gather_tokens: BIMKERN_BACKEND=native, but the native library was not built" in done.stderr


def test_forcing_host_cuda_where_it_was_not_built_raises(package_without_library):
    done = run_in(package_without_library, ONE_CALL, BIMKERN_BACKEND="host-cuda")
    assert done.returncode != 0
    reason = "BIMKERN_BACKEND=host-cuda, but the native library was not built (make host-cuda)"
    assert f"gather_tokens: {reason}" in done.stderr


@pytest.mark.skipif(not (PACKAGE / "_native_host_cuda.so").exists(), reason="no `make host-cuda`")
def test_host_cuda_serves_the_ops_that_have_a_cuda_kernel_in_cpp():
    code = "from bimkern import ops; print({op: row['cpu'].reason for op, row in ops.backends().items()})"
    done = run_in(PACKAGE.parent, code, BIMKERN_BACKEND="host-cuda")
    assert "'gather_tokens': 'BIMKERN_BACKEND=host-cuda'" in done.stdout, done.stderr
    assert "masked_loss: BIMKERN_BACKEND=host-cuda, but there is no host-cuda kernel for cpu" in done.stdout


def test_the_package_imports_without_heavy_or_optional_packages():
    heavy = "{'torchvision', 'timm', 'nvidia.dali', 'bimkern.ops._triton'}"
    done = run_in(PACKAGE.parent, f"import sys, bimkern, bimkern.ops; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_native_library_serves_here():
    assert _backend.choice("gather_tokens", "cpu") == _backend.Choice("native", "has a kernel for cpu")


def test_forced_reference(monkeypatch):
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    tokens = torch.randn(1, 3, 4, requires_grad=True)
    out = ops.gather_tokens(tokens, KEEP)
    assert out.grad_fn.name() == "CatBackward0"  # plain torch, not our op
    assert ops.backends()["gather_tokens"]["cpu"] == _backend.Choice("reference", "BIMKERN_BACKEND=reference")


def test_forced_native(monkeypatch):
    monkeypatch.setenv("BIMKERN_BACKEND", "native")
    tokens = torch.randn(1, 3, 4, requires_grad=True)
    assert torch.equal(ops.gather_tokens(tokens, KEEP), tokens[:, [0, 2]])
    assert ops.backends()["gather_tokens"]["cpu"].backend == "native"


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ("triton", "gather_tokens: BIMKERN_BACKEND=triton, but there is no triton kernel for cpu"),
        ("cuda", "gather_tokens: BIMKERN_BACKEND must be one of reference, native, triton, host-cuda, got 'cuda'"),
        ("host-cuda", "gather_tokens: BIMKERN_BACKEND=host-cuda, but it was set after bimkern was imported"),
    ],
)
def test_a_forced_backend_that_is_missing_raises(monkeypatch, forced, message):
    monkeypatch.setenv("BIMKERN_BACKEND", forced)
    with pytest.raises(RuntimeError) as raised:
        ops.gather_tokens(torch.zeros(1, 3, 4), KEEP)
    assert str(raised.value) == message
    assert ops.backends()["gather_tokens"]["cpu"] == _backend.Choice("none", message)


def test_a_chosen_instruction_set_is_used():
    code = "from bimkern.ops._backend import native; print(native.simd)"
    done = run_in(PACKAGE.parent, ONE_CALL + code, BIMKERN_CPU="baseline")
    assert done.stdout.splitlines()[-1] == "baseline", done.stderr


def test_an_instruction_set_that_is_missing_raises():
    done = run_in(PACKAGE.parent, ONE_CALL, BIMKERN_CPU="avx1024")
    assert done.returncode != 0
    assert "BIMKERN_CPU must be one of baseline, avx2, avx512, got 'avx1024'" in done.stderr


def test_an_op_without_kernels_is_no_warning(monkeypatch, caplog):
    monkeypatch.setattr(_backend, "_kernels", {"twice": {}})
    with caplog.at_level(logging.INFO, logger="bimkern.ops"):
        assert _backend.call("twice", lambda x: x + x, torch.ones(1)).item() == 2
    assert _backend.choice("twice", "cpu") == _backend.Choice("reference", "no kernel yet")
    assert not caplog.records


def test_a_device_without_a_kernel_runs_on_the_reference():
    assert _backend.choice("gather_tokens", "meta") == _backend.Choice("reference", "no kernel for meta yet")


@pytest.mark.parametrize(
    ("forced", "backend", "reason"),
    [
        (None, "native", "on the host: has a kernel for cpu"),
        ("native", "native", "on the host: BIMKERN_BACKEND=native"),
        ("reference", "reference", "on the host: BIMKERN_BACKEND=reference"),
        ("triton", "none", "group_windows: BIMKERN_BACKEND=triton, but there is no triton kernel for cpu"),
    ],
)
def test_an_op_of_the_host_runs_there_for_every_device(monkeypatch, forced, backend, reason):
    if forced is not None:
        monkeypatch.setenv("BIMKERN_BACKEND", forced)
    assert ops.backends()["group_windows"]["cuda"] == _backend.Choice(backend, reason)


def test_a_host_op_without_its_library_is_a_fallback_for_every_device(monkeypatch):
    missing = _backend.native.__class__(path=_backend.native.path, error="it was not built")
    monkeypatch.setattr(_backend, "native", missing)
    chosen = _backend.choice("group_windows", "cuda")
    assert chosen == _backend.Choice("reference", "on the host: it was not built", fallback=True)


def test_a_library_without_cuda_serves_the_cpu_only(monkeypatch):
    without = _backend.native.__class__(path=_backend.native.path, cuda_archs=())
    monkeypatch.setattr(_backend, "native", without)
    assert _backend.choice("gather_tokens", "cpu").backend == "native"
    chosen = _backend.choice("gather_tokens", "cuda")
    assert chosen.backend == "reference"
    assert chosen.fallback
    assert "built without CUDA" in chosen.reason
