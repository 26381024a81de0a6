"""The Triton kernels compile for every architecture that is shipped, keep to their registers, and access in vectors."""

import sys
from collections import Counter
from pathlib import Path

import commands
import pytest

from bench.compiled import triton_code
from bench.compiled.cuda_kernels import ARCHITECTURES

pytestmark = pytest.mark.long  # all of the file, whose tests share a report
ROOT = Path(__file__).resolve().parents[2]
KERNELS = (
    *("loss_tiles", "slope_tiles", "add_partials", "loss_patches", "slope_patches", "write_patches"),
    *("attend", "query_grads", "key_grads", "add_to_table"),
)

# A thread's loads / stores, number x bytes. Tiles: 8 values of pred and of the float32 target in vectors, then weight,
# denominator and grad. Patches: 4 values of pred in a vector, 4 pixels of uint8, mean and std of one channel in a loop,
# then the rest. Rows of 588 = 4 * 147 values are aligned to 16 bytes in float32 and to 8 in 16 bits, rows of 768 to 16.
# Heads: 4 channels of a token in a vector, then biases and what places tokens.
WIDTHS = {
    "loss_tiles[float32 P=768]": "4x16 2x4 / 1x4",
    "loss_tiles[float32 P=588]": "4x16 2x4 / 1x4",
    "loss_tiles[bfloat16 P=768]": "3x16 1x4 / 1x4",
    "loss_tiles[bfloat16 P=588]": "2x16 2x8 2x4 / 1x4",
    "loss_tiles[float16 P=588]": "2x16 2x8 2x4 / 1x4",
    "loss_tiles[float64 P=768]": "8x16 4x8 / 1x8",
    "slope_tiles[float32 P=768]": "4x16 4x4 / 2x16",
    "slope_tiles[float32 P=588]": "4x16 4x4 / 2x16",
    "slope_tiles[bfloat16 P=768]": "3x16 3x4 / 1x16",
    "slope_tiles[bfloat16 P=588]": "2x16 2x8 4x4 / 2x8",
    "slope_tiles[float16 P=588]": "2x16 2x8 4x4 / 2x8",
    "slope_tiles[float64 P=768]": "8x16 6x8 / 4x16",
    "loss_patches[float32 p=14]": "1x16 3x4 4x1 / 1x4",
    "loss_patches[bfloat16 p=14]": "1x8 3x4 4x1 / 1x4",
    "loss_patches[float64 p=32]": "2x16 7x8 / 1x8",
    "slope_patches[float32 p=14]": "1x16 5x4 4x1 / 1x16",
    "slope_patches[bfloat16 p=14]": "1x8 5x4 4x1 / 1x8",
    "slope_patches[float16 p=14]": "1x8 5x4 4x1 / 1x8",
    "slope_patches[float64 p=32]": "2x16 9x8 / 2x16",
    "write_patches[float32 p=14]": "2x4 4x1 / 1x16",
    "write_patches[float64 p=32]": "6x8 / 2x16",
    "attend[float32 d=32]": "1x16 29x4 / 1x16 1x4",
    "attend[bfloat16 d=32]": "1x8 47x4 / 1x8 1x4",
    "key_grads[float32 d=32]": "2x16 17x4 / 2x16",
}


@pytest.fixture(scope="module")
def report():
    pytest.importorskip("triton")
    # In a process of its own: compiling fails where kernels were interpreted before.
    command = [sys.executable, "-m", "bench.compiled.triton_kernels"]
    done = commands.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_kernel_spills(report):
    for kernel in KERNELS:
        assert f"`{kernel}[" in report


def test_accesses_are_as_wide_as_rows_are_aligned(report):
    rows = (line.strip("| ").split(" | ") for line in report.splitlines() if line.startswith("| `"))
    found = {name.strip("`"): cells for name, *cells in rows}
    assert {name: [in_16_bytes(cell) for cell in found[name]] for name in WIDTHS} == {
        name: [in_16_bytes(cell)] * len(ARCHITECTURES) for name, cell in WIDTHS.items()
    }


def in_16_bytes(cell):
    """Count accesses of 32 bytes, which newer compilers make for sm_100, as two."""
    counts = []
    for accesses in cell.split(" / "):
        counts.append(Counter())
        for access in accesses.split():
            number, width = map(int, access.split("x"))
            counts[-1][min(width, 16)] += number * max(1, width // 16)
    return counts


def test_widths_are_read_off_ptx():
    ptx = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.L1::evict_first.v2.b32 { %r5, %r6 }, [ %rd2 + 0 ];
    ld.global.b16 { %rs1 }, [ %rd3 + 0 ];
    ld.param.b64 %rd4, [kernel_param_0];
    st.global.v8.b32 [ %rd5 + 0 ], { %r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8 };
    """
    assert triton_code.widths(ptx) == ({16: 1, 8: 1, 2: 1}, {32: 1})


def test_arithmetic_in_16_bits_is_found():
    moves = """
    tt.func public @kernel(%p: !tt.ptr<bf16>) {
    %f16 = tt.load %x, %m, %cst : tensor<4x!tt.ptr<bf16>> loc(#loc1)
    %y = arith.extf %f16 : tensor<4xbf16> to tensor<4xf32> loc(#loc2)
    %z = tt.addptr %p, %i : tensor<4x!tt.ptr<bf16>>, tensor<4xi32>
    %s = arith.addf %y, %y : tensor<4xf32>
    """
    assert triton_code.arithmetic_in_16_bits(moves) == []
    faults = [
        "%z = arith.addf %x, %y : tensor<4x8xbf16>",
        "%z = arith.cmpf une, %x, %y : f16",
        "%z = math.sqrt %x : bf16",
    ]
    assert triton_code.arithmetic_in_16_bits("\n".join([moves, *faults])) == faults
