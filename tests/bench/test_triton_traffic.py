"""The traffic of the Triton kernels stays what the committed table says: a kernel that reads more fails here."""

from dataclasses import asdict, replace

import pytest

from bench import triton_traffic

KEY = ("op", "pass_", "shape", "dtype", "ideal")
COUNTS = ("asked", "sectors", "program", "launch")


def test_the_committed_table_is_what_is_counted():
    pytest.importorskip("triton")
    committed, counted = triton_traffic.read(triton_traffic.RESULTS.read_text()), triton_traffic.rows()
    assert [[asdict(row)[name] for name in KEY] for row in counted] == [
        [asdict(row)[name] for name in KEY] for row in committed
    ]
    for now, then in zip(counted, committed, strict=True):
        for name in COUNTS:
            assert getattr(now, name) == pytest.approx(getattr(then, name), rel=0.05), f"{name} of {now}"


def test_losses_move_no_more_than_they_must():
    for row in triton_traffic.read(triton_traffic.RESULTS.read_text()):
        assert row.ideal <= 1.001 * row.launch, row
        assert row.launch <= 1.13 * row.ideal, row  # rows of 14 or 16 bytes of an image share sectors with visible ones
        if row.op == "masked_loss":
            assert row.sectors <= 1.06 * row.ideal, row


def test_a_table_is_read_as_it_was_written():
    row = triton_traffic.Row(
        op="masked_loss", pass_="fwd", shape="B=1", dtype="float32", ideal=4, asked=5, sectors=64, program=32, launch=32
    )
    assert triton_traffic.read(triton_traffic.written([row, replace(row, pass_="bwd")])) == [
        row,
        replace(row, pass_="bwd"),
    ]
    assert str(row) == "| masked_loss fwd | B=1 | float32 | 0.000 | 1.25 | 16.00 | 8.00 | 8.00 |"
