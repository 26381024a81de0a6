"""The traffic of the Triton kernels stays what the committed table says: a kernel that reads more fails here."""

import importlib.util
import math
from dataclasses import replace

import pytest

from bench.__main__ import main
from bench.traffic import command as traffic
from bench.traffic import tables, triton_count
from bimkern.ops import _backend


@pytest.mark.long
def test_the_kernels_move_what_the_table_says():
    pytest.importorskip("triton")
    assert tables.differences(triton_count.rows(), traffic.load_triton()) == []


def test_kernels_move_no_more_than_they_must():
    # Attention reads keys and values for every block of queries, and its gradients read all of it four times.
    asked = {("group_attention", "fwd"): 1.22, ("group_attention", "bwd"): 3.01}
    requested = {"group_attention": 3.3, "masked_loss": 1.06}
    for row in traffic.load_triton():
        assert row.asked_bytes <= asked.get((row.op, row.pass_), 1.04) * row.ideal_bytes, row
        # Rows of 14 or 16 bytes of a masked patch share sectors with visible ones.
        assert 0.999 <= row.ratio(row.launch_sectors) <= 1.13, row
        assert row.ratio(row.requested_sectors) <= requested.get(row.op, math.inf), row


def test_every_op_with_a_triton_kernel_is_counted():
    declared = {op for op, kernels in _backend._kernels.items() if kernels.get("cuda") == "triton"}
    assert set(triton_count.OPS) == {row.op for row in traffic.load_triton()} == declared


def counted(monkeypatch, rows):
    """Let the command count these rows, and nothing in CUDA."""
    monkeypatch.setattr(triton_count, "rows", lambda: rows)
    monkeypatch.delattr(traffic, "build")


def test_the_command_shows_one_op(monkeypatch, capsys):
    counted(monkeypatch, traffic.load_triton())
    assert main(["traffic", "masked_loss"]) == 0
    _, head, _, *lines, _, closing = capsys.readouterr().out.splitlines()
    assert head.startswith("| op | pass | shape | dtype | ideal bytes | asked |")
    assert len(lines) == sum(row.op == "masked_loss" for row in traffic.load_triton())
    assert lines[1] == "| masked_loss | bwd | B=1 N=196 P=768 | float32 | 1506064 | 1.00x | 1.00x | 1.00x | 1.00x |"
    assert closing == f"as in {traffic.FOLDER}, within 5%"


def test_a_kernel_that_reads_more_fails_the_command(monkeypatch, capsys):
    first, *rest = traffic.load_triton()
    counted(monkeypatch, [replace(first, asked_bytes=2 * first.asked_bytes), *rest])
    assert main(["traffic", "masked_loss"]) == 1
    expected = f"{' '.join(first.key)}: asked_bytes {first.asked_bytes} -> {2 * first.asked_bytes}"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_the_command_saves_all_rows(monkeypatch, tmp_path):
    counted(monkeypatch, traffic.load_triton())
    held = traffic.TRITON_TABLE.read_text()
    monkeypatch.setattr(traffic, "TRITON_TABLE", tmp_path / "traffic_triton.csv")
    assert main(["traffic", "masked_loss", "--save"]) == 0
    assert traffic.TRITON_TABLE.read_text() == held


def test_lines_of_a_triton_kernel_are_refused(capsys):
    assert main(["traffic", "--lines", "hog", "pixel_targets"]) == 2
    expected = "bench: --lines: pixel_targets is a Triton kernel; see `python -m bench.compiled.triton_kernels`\n"
    assert capsys.readouterr().err == expected


def test_says_that_triton_is_missing(monkeypatch, capsys):
    missing = "bench: triton is not installed, whose interpreter counts the Triton kernels' traffic\n"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["traffic", "masked_loss"]) == 2
    assert capsys.readouterr().err == missing
    monkeypatch.setattr(traffic, "_count_cuda", lambda given: [])
    assert main(["traffic"]) == 0  # of everything, without that part
    assert capsys.readouterr().out.startswith("\n" + missing)


def test_a_count_that_fails_is_no_missing_tool(monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_count, "ROOT", tmp_path)  # which has no bench
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["traffic", "masked_loss"]) == 2
    assert "-m bench.traffic.triton_count: exit code 1\n" in capsys.readouterr().err
