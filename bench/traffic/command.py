"""`python -m bench traffic`: the memory traffic of the GPU kernels on the shapes of a ViT-B, counted on the CPU.

The kernels in CUDA run in the stand-in for CUDA of tests/csrc/host_cuda, which sees every address. For each kernel:

    accesses   loads, stores and atomics of whole warps: more of them where packets become elements
    requested  32-byte sectors that the accesses of all warps ask for, each access on its own
    blocks     distinct sectors of each block, added up: what a perfect L1 cache leaves
    launch     distinct sectors of the launch: what a perfect L2 cache leaves
    passes     times that accesses take the banks of shared memory; least_passes: without a bank conflict

over the bytes that the kernel has to move at least. These are counts of addresses, not times. Ops whose CUDA form is
Triton: `bench.traffic.triton_count`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from bench.cli import Parser, UsageError
from bench.compiled import sass
from bench.compiled.cuda_kernels import ROOT, CompileError
from bench.results import FOLDER
from bench.traffic import tables, triton_count
from bench.traffic.cuda_count import Launch, Row, TrafficError, TrafficUnavailable, build, instance, launches

CUDA_OPS = tuple(sorted(path.stem for path in (ROOT / "csrc" / "ops").glob("*.cu")))
OPS = tuple(sorted((*CUDA_OPS, *triton_count.OPS)))
TABLE = FOLDER / "traffic.csv"
TRITON_TABLE = FOLDER / "traffic_triton.csv"

_USAGE = "python -m bench traffic [OP...] [--lines] [--save]"
_OPCODES = {
    ("global", "read"): ("LDG", "LD"),
    ("global", "write"): ("STG", "ST"),
    ("global", "atomic"): ("ATOMG", "ATOM", "RED"),
    ("shared", "read"): ("LDS", "LD"),
    ("shared", "write"): ("STS", "ST"),
    ("shared", "atomic"): ("ATOMS", "ATOM"),
}


def load() -> list[Row]:
    """Read the table of the kernels in CUDA."""
    return tables.read(Row, TABLE.read_text())


def load_triton() -> list[triton_count.Row]:
    """Read the table of the kernels in Triton."""
    return tables.read(triton_count.Row, TRITON_TABLE.read_text())


def faults(found: Iterable[Launch], held: Iterable[Row]) -> list[str]:
    """Name the differences to the table, and reads of what is not initialized."""
    found = list(found)
    return tables.differences((launch.row for launch in found), held) + [
        f"{' '.join(launch.row.key)}: {launch.uninitialized} reads of shared memory that is not written yet"
        for launch in found
        if launch.uninitialized
    ]


def table(rows: Iterable[Row]) -> str:
    """Lay rows out as Markdown, sectors over the ideal."""
    lines = [
        "| op | kernel | pass | shape | dtype | ideal | accesses | requested | blocks | launch | passes / least |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        sectors = (row.requested_sectors, row.block_sectors, row.launch_sectors)
        ratios = " | ".join(f"{row.ratio(count):.2f}x" for count in sectors)
        passes = f"{row.passes} / {row.least_passes}"
        lines.append(f"| {' | '.join(row.key)} | {row.ideal_bytes} | {row.accesses} | {ratios} | {passes} |")
    return "\n".join(lines)


def lines_table(launch: Launch, code: Sequence[sass.Instruction]) -> str:
    """Lay the lines of a launch out, beside the loads and stores of those lines in nvcc's code for sm_90."""
    head = f"{' '.join(launch.row.key)}"
    texts = [head, f"  {'line':24} {'memory':14} {'bytes':>5} {'accesses':>9} {'each':>6} {'least':>6}  nvcc"]
    for line in launch.lines:
        opcodes = _OPCODES[line.space, line.access]
        own = [at for at in code if f"{at.file}:{at.line}" == line.position and at.does(*opcodes)]
        names = Counter(at.opcode for at in own)
        machine = ", ".join(f"{name} x{count}" for name, count in sorted(names.items()))
        other = "" if not own or line.width in {at.width for at in own} else "  other widths"
        texts.append(
            f"  {line.position:24} {line.space + ' ' + line.access:14} {line.width:5} {line.warps:9} "
            f"{line.cost / line.warps:6.2f} {line.least_cost / line.warps:6.2f}  {machine}{other}"
        )
    return "\n".join(texts)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        1 if the counts differ from the table, or a kernel reads what is not initialized; 2 if nothing was counted.
    """
    given = _parser().parse_args(arguments)
    if unknown := set(given.ops) - set(OPS):
        raise UsageError(f"no op with a GPU kernel is named {min(unknown)!r}; choose from {', '.join(OPS)}")
    if given.lines and (triton := set(given.ops) & set(triton_count.OPS)):
        raise UsageError(f"--lines: {min(triton)} is a Triton kernel; see `python -m bench.compiled.triton_kernels`")
    try:
        wrong = [] if given.ops and not set(given.ops) & set(CUDA_OPS) else _count_cuda(given)
        if not given.lines and (not given.ops or set(given.ops) & set(triton_count.OPS)):
            wrong += _count_triton(given)
    except (TrafficError, CompileError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not given.save:
        print("\n" + "\n".join(wrong or [f"as in {FOLDER}, within {tables.TOLERANCE:.0%}"]))
    return 1 if wrong else 0


def _count_cuda(given: argparse.Namespace) -> list[str]:
    """Show or save the traffic of the kernels in CUDA; return what is wrong with it."""
    build()
    found = launches()
    shown = [launch for launch in found if not given.ops or launch.row.op in given.ops]
    if given.lines:
        code = {op: _code(op) for op in dict.fromkeys(launch.row.op for launch in shown)}
        print("\n\n".join(lines_table(one, code[one.row.op][instance(one.symbol)]) for one in shown))
    else:
        print(table(launch.row for launch in shown))
    if given.save:
        TABLE.write_text(tables.written(Row, (launch.row for launch in found)))
        print(f"\n{len(found)} rows written to {TABLE}")
    return faults(found, load())


def _count_triton(given: argparse.Namespace) -> list[str]:
    """Show or save the traffic of the kernels in Triton; return what is wrong with it."""
    try:
        found = triton_count.rows()
    except TrafficUnavailable as error:
        if given.ops:
            raise
        print(f"\nbench: {error}")
        return []
    print("\n" + triton_count.table(row for row in found if not given.ops or row.op in given.ops))
    if given.save:
        TRITON_TABLE.write_text(tables.written(triton_count.Row, found))
        print(f"\n{len(found)} rows written to {TRITON_TABLE}")
    return tables.differences(found, load_triton())


def _code(op: str) -> dict[tuple[str, str], list[sass.Instruction]]:
    code = sass.disassemble(ROOT / "csrc" / "ops" / f"{op}.cu")
    return {instance(symbol): instructions for symbol, instructions in code.items()}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench traffic", usage=_USAGE, description=__doc__.partition("\n\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)}; without: all")
    parser.add_argument("--lines", action="store_true", help="kernels in CUDA by source line, beside nvcc's code")
    parser.add_argument("--save", action="store_true", help="replace the tables in bench/results")
    return parser
