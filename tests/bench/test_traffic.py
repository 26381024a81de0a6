"""What the kernels in CUDA move, by a count of every address: bench/results/traffic.csv holds, and is good enough."""

import shutil
import subprocess
from dataclasses import replace

import pytest

from bench.__main__ import main
from bench.traffic import command as traffic
from bench.traffic import cuda_count, tables, triton_count

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
# Rows of an op that need more: lines of 72 pixels do not start with sectors.
MORE = {" H=72 ": 2.6}


@pytest.mark.long
def test_the_kernels_move_what_the_table_says():
    try:
        cuda_count.build()
    except cuda_count.TrafficUnavailable as error:
        pytest.skip(str(error))
    launches = cuda_count.launches()
    assert traffic.faults(launches, traffic.load()) == []
    conflicts = {launch.row.key: launch.worst_conflict for launch in launches if launch.worst_conflict > 2}
    assert conflicts == {}


def test_every_kernel_has_rows_and_moves_little():
    rows = traffic.load()
    assert {row.op for row in rows} == set(traffic.CUDA_OPS)
    assert len({row.key for row in rows}) == len(rows)
    for (op, kernel), most in MOST.items():
        own = [row for row in rows if (row.op, row.kernel) == (op, kernel)]
        assert own
        for row in own:
            bound = next((more for part, more in MORE.items() if part in row.shape), most)
            assert row.ratio(row.requested_sectors) <= bound, row


def test_reads_element_by_element_are_noticed():
    rows = traffic.load()
    first, *rest = rows
    assert tables.differences(rows, rows) == []
    within, beyond = (replace(first, accesses=round(first.accesses * (1 + share))) for share in (0.04, 0.06))
    assert within != first
    assert tables.differences([within, *rest], rows) == []
    assert len(tables.differences([beyond, *rest], rows)) == 1
    slower = replace(first, requested_sectors=first.requested_sectors * 2)
    (text,) = tables.differences([slower, *rest], rows)
    assert text.startswith("gather_tokens gather_kernel fwd B=4 ")
    assert text.endswith(f": requested_sectors {first.requested_sectors} -> {slower.requested_sectors}")
    assert tables.differences(rest, rows) == [f"{' '.join(first.key)}: not counted any more"]
    assert tables.differences(rows, rest) == [f"{' '.join(first.key)}: not in the table"]


def test_tables_are_written_as_they_are_read():
    assert tables.written(cuda_count.Row, traffic.load()) == traffic.TABLE.read_text()
    assert tables.written(triton_count.Row, traffic.load_triton()) == traffic.TRITON_TABLE.read_text()


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("_ZN7bimkern12_GLOBAL__N_113gather_kernelIfLi4EEEvNS_12GatherTokensE", ("gather_kernel", "IfLi4E")),
        ("_ZN7bimkern49_GLOBAL__N__7d_16_gather_tokens_cu_a2d319413gather_kernelIfLi4EEEvNS_12GatherTokensE",
         ("gather_kernel", "IfLi4E")),
        ("_ZN7bimkern12_GLOBAL__N_110hog_kernelINS_8bfloat16ELi1ELb0EEEvNS0_6LaunchE",
         ("hog_kernel", "INS_8bfloat16ELi1ELb0E")),
        ("_ZN7bimkernL16positions_kernelENS_4KeepENS_10TokenSizesEPi", ("positions_kernel", "")),
    ],
)  # fmt: skip
def test_kernels_of_both_compilers_have_one_name(symbol, expected):
    assert cuda_count.instance(symbol) == expected


def test_conflicts_that_the_data_make_are_left_out():
    line = cuda_count.Line(position="a.cu:1", space="shared", access="read", width=4, warps=1, cost=8, least_cost=1)
    (launch,) = [cuda_count.Launch(row=traffic.load()[0], symbol="", uninitialized=0, lines=(line,))]
    assert launch.worst_conflict == 8
    update = replace(launch, lines=(line, replace(line, access="write")))
    assert update.worst_conflict == 1


def test_an_unknown_op_is_refused(capsys):
    assert main(["traffic", "match"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bench: no op with a GPU kernel is named 'match'; choose from embed_visible, ")


@pytest.mark.parametrize("tool", ["cmake", "ninja", "addr2line"])
def test_says_which_tool_is_missing(tool, monkeypatch, capsys):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else which(name) or name)
    assert main(["traffic"]) == 2
    assert capsys.readouterr().err == f"bench: {tool} was not found, which counting needs\n"


def test_a_failed_compile_is_no_missing_tool(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    failed = subprocess.CompletedProcess([], 1, "no such header\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(cuda_count.TrafficError, match="no such header") as caught:
        cuda_count.build()
    assert not isinstance(caught.value, cuda_count.TrafficUnavailable)
    assert main(["traffic"]) == 2
