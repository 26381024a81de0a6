"""What Triton's compiler makes of a kernel: widths of loads and stores (PTX), operations in 16 bits (its own IR)."""

import re
from collections import Counter

_ACCESS = re.compile(r"\b(ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[busf](8|16|32|64)\b")
_OPERATION = re.compile(r"(?:= )?\b(\w+\.\w+)\b")
_POINTER = re.compile(r"!tt\.ptr<\w+>")
_IN_16_BITS = re.compile(r"(?<![%\w])(?:tensor<[\dx]*x)?b?f16\b")
_MOVES = {"tt.load", "tt.store", "arith.extf", "arith.truncf", "arith.constant"}


def widths(ptx: str) -> tuple[Counter[int], Counter[int]]:
    """Count the loads, and the stores, of global memory by their bytes, per thread."""
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    for kind, vector, bits in _ACCESS.findall(ptx):
        (loads if kind == "ld" else stores)[int(vector or 1) * int(bits) // 8] += 1
    return loads, stores


def arithmetic_in_16_bits(ttir: str) -> list[str]:
    """Return the lines that do more with float16 or bfloat16 than to load, store or convert it."""
    found = []
    for line in ttir.splitlines():
        operation = _OPERATION.search(line.partition(" loc(")[0])
        if (
            operation is not None
            and operation[1] not in _MOVES | {"tt.func"}
            and _IN_16_BITS.search(_POINTER.sub("", line))
        ):
            found.append(line.strip().partition(" loc(")[0])
    return found
