"""What the CUDA kernels move, by a count of every address: bench/results/traffic.csv holds, and it is good enough."""

import platform
import re
import shutil
from dataclasses import replace

import pytest

from bench import traffic, traffic_count
from bench.__main__ import main

# Requested sectors over the ideal at most, where every row is read and written in packets of 16 bytes.
MOST = {
    ("gather_tokens", "gather_kernel"): 1.25,
    ("gather_tokens", "scatter_kernel"): 1.3,
    ("gather_tokens", "sum_kernel"): 1.3,
    ("restore_tokens", "restore_kernel"): 1.25,
    ("restore_tokens", "restore_bwd_kernel"): 1.3,
    ("restore_tokens", "mask_token_kernel"): 1.3,
    ("embed_visible", "visible_patches_kernel"): 1.75,
    ("embed_visible", "add_embeddings_kernel"): 1.65,
    ("hog", "hog_kernel"): 2.2,
}
# Cells of seven pixels are read one by one, and lines of 72 pixels do not begin where sectors do.
LEFT_OUT = re.compile(r"cells=7$|H=72 ")


@pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="the stand-in for CUDA needs Linux and GCC"
)
def test_the_kernels_move_what_the_table_says():
    traffic_count.build()
    launches = traffic_count.launches()
    assert traffic.faults(launches, traffic.load()) == []
    conflicts = {launch.row.key: launch.worst_conflict for launch in launches if launch.worst_conflict > 2}
    assert conflicts == {}


def test_every_kernel_has_rows_and_moves_little():
    rows = traffic.load()
    assert {row.op for row in rows} == set(traffic.OPS)
    assert len({row.key for row in rows}) == len(rows)
    for (op, kernel), most in MOST.items():
        own = [row for row in rows if (row.op, row.kernel) == (op, kernel) and not LEFT_OUT.search(row.shape)]
        ratios = [row.ratio(row.requested_sectors) for row in own]
        assert ratios
        assert max(ratios) <= most, kernel


def test_reads_element_by_element_are_noticed():
    rows = traffic.load()
    first, *rest = rows
    assert traffic.differences(rows, rows) == []
    assert traffic.differences([replace(first, passes=first.passes), *rest], rows) == []
    slower = replace(first, requested_sectors=first.requested_sectors * 2)
    (text,) = traffic.differences([slower, *rest], rows)
    assert text.startswith("gather_tokens gather_kernel fwd B=4 ")
    assert text.endswith(f": requested_sectors {first.requested_sectors} -> {slower.requested_sectors}")
    assert traffic.differences(rest, rows) == [f"{' '.join(first.key)}: not counted any more"]
    assert traffic.differences(rows, rest) == [f"{' '.join(first.key)}: not in the table"]


def test_the_table_is_written_as_it_is_read(tmp_path):
    traffic.save(traffic.load(), tmp_path / "traffic.csv")
    assert (tmp_path / "traffic.csv").read_bytes() == traffic.TABLE.read_bytes()


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("_ZN7bimkern12_GLOBAL__N_113gather_kernelIfLi4EEEvNS_12GatherTokensE", ("gather_kernel", "IfLi4E")),
        ("_ZN7bimkern49_GLOBAL__N__7d_16_gather_tokens_cu_a2d319413gather_kernelIfLi4EEEvNS_12GatherTokensE",
         ("gather_kernel", "IfLi4E")),
        ("_ZN7bimkern12_GLOBAL__N_110hog_kernelINS_8bfloat16ELi1ELb0EEEvNS0_6LaunchE",
         ("hog_kernel", "INS_8bfloat16ELi1ELb0E")),
        ("_ZN7bimkernL13places_kernelENS_4KeepENS_10TokenSizesEPi", ("places_kernel", "")),
    ],
)  # fmt: skip
def test_kernels_of_both_compilers_have_one_name(symbol, expected):
    assert traffic_count.instance(symbol) == expected


def test_conflicts_that_the_data_make_are_left_out():
    line = traffic_count.Line(place="a.cu:1", space="shared", access="read", width=4, warps=1, cost=8, least_cost=1)
    (launch,) = [traffic_count.Launch(row=traffic.load()[0], symbol="", uninitialized=0, lines=(line,))]
    assert launch.worst_conflict == 8
    update = replace(launch, lines=(line, replace(line, access="write")))
    assert update.worst_conflict == 1


def test_an_unknown_op_is_refused(capsys):
    assert main(["traffic", "match"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bench: no op with a CUDA kernel is named 'match'; choose from embed_visible, ")
