"""Calling an op again and again leaves nothing behind on the heap."""

import ctypes
import gc
import itertools

import pytest
import torch

from bench.odd_shapes import CALLS, Inputs

TIMES, ROUNDS = 100, 4  # a leak shows in every round, a cache that grows in one or two
SMALLEST = 32  # bytes that malloc spends at least


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of glibc: `uordblks` are the bytes in use, of all threads."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


@pytest.fixture(scope="module", autouse=True)
def only_what_calls_leave_is_collected():
    """What other tests left need not be looked at in every round: among all the tests that took most of the time."""
    gc.collect()
    gc.freeze()


def bytes_in_use():
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("needs glibc 2.33")
    mallinfo.restype = Mallinfo
    gc.collect()
    return mallinfo().uordblks


@pytest.mark.parametrize(("op", "way"), [(op, way) for op, ways in CALLS.items() for way in range(len(ways))])
def test_nothing_is_left(op, way):
    inputs = Inputs((2, 13, 4, 20), torch.float32, torch.device("cpu"))

    def call(times):
        for _ in range(times):
            output = CALLS[op][way](inputs)
            if output.requires_grad:
                output.backward(torch.ones_like(output))

    in_use = []
    for _ in range(ROUNDS + 1):
        call(TIMES)
        in_use.append(bytes_in_use())
    left = min(after - before for before, after in itertools.pairwise(in_use))
    assert left < TIMES * SMALLEST / 2, f"{left / TIMES:.1f} bytes a call"
