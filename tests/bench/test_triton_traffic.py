"""The traffic of the Triton kernels stays what the committed table says: a kernel that reads more fails here."""

from dataclasses import asdict, replace

import pytest

from bench import triton_traffic

KEY = ("op", "pass_", "shape", "dtype", "ideal_bytes")
COUNTS = ("asked_bytes", "requested_sectors", "block_sectors", "launch_sectors")


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
        # Rows of 14 or 16 bytes of a masked patch share sectors with visible ones.
        assert 0.999 <= row.ratio(row.launch_sectors) <= 1.13, row
        if row.op == "masked_loss":
            assert row.ratio(row.requested_sectors) <= 1.06, row


def test_a_table_is_read_as_it_was_written():
    counts = {"ideal_bytes": 64, "asked_bytes": 80, "requested_sectors": 8, "block_sectors": 4, "launch_sectors": 2}
    row = triton_traffic.Row(op="masked_loss", pass_="fwd", shape="B=1", dtype="float32", **counts)
    rows = [row, replace(row, pass_="bwd")]
    assert triton_traffic.read(triton_traffic.written(rows)) == rows
    *_, line = triton_traffic.table(rows).splitlines()
    assert line == "| masked_loss | bwd | B=1 | float32 | 64 | 1.25x | 4.00x | 2.00x | 1.00x |"
