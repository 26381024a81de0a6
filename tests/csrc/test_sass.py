"""What nvcc makes of the kernels that memory bounds: wide loads, several of them in flight, and no slow division.

A count of addresses on the CPU (tests/bench/test_traffic.py) cannot see these: they are the compiler's choice.
"""

import functools
import importlib.util
import re
import shutil
from itertools import groupby

import pytest

from bench.compiled import sass
from bench.compiled.cuda_kernels import ROOT, CompileError
from bench.traffic.cuda_count import instance

needs_code = pytest.mark.skipif(
    shutil.which("nvcc") is None or importlib.util.find_spec("triton") is None, reason="no nvcc, or no triton"
)

IN_FLIGHT = 4  # loads of a thread, at least, before it stores
# Loads that are no part of a row: ids of 8 bytes, of which some are in flight at once, and positions of 4.
OTHER_LOADS = {
    ("gather_tokens", "gather_kernel"): 1,
    ("gather_tokens", "scatter_kernel"): 4,
    ("gather_tokens", "sum_kernel"): 1,
    ("restore_tokens", "restore_kernel"): 4,
    ("restore_tokens", "restore_bwd_kernel"): 1,
}
PACKED = ("IfLi4E", "INS_7float16ELi8E", "INS_8bfloat16ELi8E", "IdLi2E")


@functools.cache
def code(op):
    """The instructions of the kernels of one file, compiled once."""
    disassembled = sass.disassemble(ROOT / "csrc" / "ops" / f"{op}.cu")
    return {instance(symbol): instructions for symbol, instructions in disassembled.items()}


@needs_code
@pytest.mark.parametrize("types", PACKED)
@pytest.mark.parametrize(("op", "kernel"), OTHER_LOADS)
def test_rows_move_in_packets_of_16_bytes(op, kernel, types):
    widths = {opcode: [at.width for at in code(op)[kernel, types] if at.does(opcode)] for opcode in ("LDG", "STG")}
    assert widths["LDG"].count(16) >= 1
    assert len(widths["LDG"]) - widths["LDG"].count(16) <= OTHER_LOADS[op, kernel]
    if kernel == "restore_bwd_kernel":  # lanes write the sums over images one behind the other
        assert 16 in widths["STG"]
    else:
        assert set(widths["STG"]) == {16}


@needs_code
@pytest.mark.parametrize("types", PACKED)
@pytest.mark.parametrize(
    ("op", "kernel"),
    [("gather_tokens", "gather_kernel"), ("gather_tokens", "scatter_kernel"), ("restore_tokens", "restore_kernel")],
)
def test_loads_come_before_stores(op, kernel, types):
    rows = [at for at in code(op)[kernel, types] if at.does("LDG", "STG") and at.width == 16]
    loads = [len(list(run)) for loading, run in groupby(rows, lambda at: at.does("LDG")) if loading]
    assert loads
    assert min(loads) >= IN_FLIGHT, loads


@needs_code
def test_scale_mask_divides_in_32_bits():
    for kernel, instructions in code("scale_mask").items():
        conversions = {at.opcode for at in instructions if at.does("I2F")}
        assert "I2F.U32.RP" in conversions, kernel  # what a division in 32 bits begins with
        assert not {opcode for opcode in conversions if opcode.startswith("I2F.U64")}, kernel
        calls = [at for at in instructions if at.does("CALL")]  # of the routine that divides in 64 bits
        assert [at for at in calls if at.file != "scale_mask.h"] == [], kernel  # which divides sums, not integers


@pytest.mark.parametrize(
    ("nvcc", "message"),
    [
        (None, "no nvcc on the PATH"),
        ("nvcc", "triton is not installed, whose disassembler reads nvcc's code: pip install triton"),
    ],
)
def test_says_what_is_not_installed(nvcc, message, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: nvcc)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match=f"^{re.escape(message)}$"):
        sass.disassemble(ROOT / "csrc" / "ops" / "scale_mask.cu")
