"""`python -m bench traffic`: the memory traffic of the CUDA kernels on the shapes of a ViT-B, counted on the CPU.

The kernels run in the stand-in for CUDA of tests/csrc/host_cuda, which sees every address. For each kernel:

    requested  32-byte sectors that the accesses of all warps ask for, each access on its own
    blocks     distinct sectors of each block, added up: what a perfect L1 cache leaves
    launch     distinct sectors of the launch: what a perfect L2 cache leaves
    passes     times that accesses take the banks of shared memory; least_passes: without a bank conflict

over the bytes that the kernel has to move at least. These are counts of addresses, not times.
"""

import argparse
import csv
import json
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from bench import sass
from bench.cli import Parser, UsageError
from bench.kernels import ROOT
from bench.results import FOLDER

TABLE = FOLDER / "traffic.csv"
BUILD = ROOT / "build" / "traffic"
PROGRAM = BUILD / "tests" / "csrc" / "host_cuda" / "traffic_host_cuda"
SECTOR = 32
TOLERANCE = 0.05

OPS = tuple(sorted(path.stem for path in (ROOT / "csrc" / "ops").glob("*.cu")))

_USAGE = "python -m bench traffic [OP...] [--lines] [--save]"
_OPCODES = {
    ("global", "read"): ("LDG", "LD"),
    ("global", "write"): ("STG", "ST"),
    ("global", "atomic"): ("ATOMG", "ATOM", "RED"),
    ("shared", "read"): ("LDS", "LD"),
    ("shared", "write"): ("STS", "ST"),
    ("shared", "atomic"): ("ATOMS", "ATOM"),
}


class TrafficError(Exception):
    """The counts cannot be had; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kernel in one case. Sectors have 32 bytes."""

    op: str
    kernel: str
    pass_: str
    shape: str
    dtype: str
    ideal_bytes: int
    requested_sectors: int
    block_sectors: int
    launch_sectors: int
    passes: int
    least_passes: int

    @property
    def key(self) -> tuple[str, ...]:
        return (self.op, self.kernel, self.pass_, self.shape, self.dtype)

    @property
    def counts(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}

    def ratio(self, sectors: int) -> float:
        """Return sectors as bytes, over the ideal."""
        return sectors * SECTOR / self.ideal_bytes


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a line of a kernel does to one memory by accesses of one width. Cost: sectors, or passes over the banks."""

    place: str  # file:line
    space: str  # global, shared
    access: str  # read, write, atomic
    width: int  # bytes of a lane
    warps: int
    cost: int
    least_cost: int  # of the same bytes, side by side


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launch, as a row of the table and by its lines."""

    row: Row
    symbol: str  # of the kernel
    uninitialized: int  # reads of shared memory before it is written
    lines: tuple[Line, ...]

    @property
    def worst_conflict(self) -> float:
        """Return the passes of the line with the worst bank conflicts, over what it would take without any.

        Lines that update a bin which the data choose (+=, atomics) are left out: no layout is free of conflicts there.
        """
        shared = [line for line in self.lines if line.space == "shared"]
        read, written = ({line.place for line in shared if line.access == access} for access in ("read", "write"))
        chosen = (read & written) | {line.place for line in shared if line.access == "atomic"}
        return max((line.cost / line.least_cost for line in shared if line.place not in chosen), default=1.0)


def build() -> None:
    """Compile the kernels with a counter at each access.

    Raises:
        TrafficError: they do not compile, or this machine cannot run the stand-in for CUDA.
    """
    options = ("-DBIMKERN_CUDA=OFF", "-DBIMKERN_BRIDGE=OFF")
    _run(["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options])
    _run(["cmake", "--build", str(BUILD), "--target", PROGRAM.name])


def _run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TrafficError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def launches() -> list[Launch]:
    """Run the cases and return what their launches do."""
    found = [json.loads(line) for line in _run([str(PROGRAM)]).splitlines()]
    kernels = list(dict.fromkeys(launch["kernel"] for launch in found))
    functions = _addr2line(["-f"], kernels).splitlines()[::2]
    # An instruction has the address behind the call that reports it: the one before lies in the call.
    places = _places({at["address"] - 1 for launch in found for at in launch["instructions"]})
    return [_launch(launch, dict(zip(kernels, functions, strict=True)), places) for launch in found]


def _places(addresses: Iterable[int]) -> dict[int, str]:
    """Return file:line of each address; where it is in a function of the stand-in, those of the call."""
    found = {}
    for part in _addr2line(["-a", "-i"], addresses).split("0x")[1:]:
        address, *frames = part.split("\n")[:-1]
        places = (re.sub(r".*/| .*", "", frame) for frame in frames)
        found[int(address, 16)] = next(place for place in places if not place.startswith("intrinsics.h:"))
    return found


def _addr2line(options: Sequence[str], addresses: Iterable[int]) -> str:
    return _run(["addr2line", *options, "-e", str(PROGRAM)], "".join(f"{address:#x}\n" for address in addresses))


def _launch(found: dict[str, Any], functions: dict[int, str], places: dict[int, str]) -> Launch:
    totals: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for at in found["instructions"]:
        key = (places[at["address"] - 1], at["space"], at["access"], at["width"])
        totals[key].update({name: at[name] for name in ("warps", "cost", "least_cost")})
    lines = tuple(
        Line(place=place, space=space, access=access, width=width, **count)
        for (place, space, access, width), count in sorted(totals.items())
    )
    shared = [line for line in lines if line.space == "shared"]
    symbol = functions[found["kernel"]]
    row = Row(
        op=found["op"],
        kernel=kernel_name(symbol),
        pass_=found["pass"],
        shape=found["shape"],
        dtype=found["dtype"],
        ideal_bytes=found["ideal"],
        requested_sectors=sum(line.cost for line in lines if line.space == "global"),
        block_sectors=found["block_sectors"],
        launch_sectors=found["launch_sectors"],
        passes=sum(line.cost for line in shared),
        least_passes=sum(line.least_cost for line in shared),
    )
    return Launch(row=row, symbol=symbol, uninitialized=found["uninitialized"], lines=lines)


def kernel_name(symbol: str) -> str:
    """Return the plain name in the symbol of a kernel."""
    return instance(symbol)[0]


def instance(symbol: str) -> tuple[str, str]:
    """Return name and template arguments of a kernel, which GCC and nvcc mangle alike."""
    found = re.search(r"([a-z_]+_kernel)(?:(I\w+?)EEv|E)", symbol)
    assert found is not None, f"{symbol} is no kernel's symbol"
    return found[1], found[2] or ""


# ---- the committed table ----------------------------------------------------------------------------------------------
COLUMNS = [f.name.rstrip("_") for f in fields(Row)]


def save(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Write the table anew."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)


def load(path: Path = TABLE) -> list[Row]:
    """Read the table."""
    types = {f.name: f.type for f in fields(Row)}
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == COLUMNS, f"{path}: has other columns than this version writes"
    return [
        Row(**{name: int(text) if kind is int else text for (name, kind), text in zip(types.items(), line, strict=True)})
        for line in lines[1:]
    ]


def differences(found: Iterable[Row], held: Iterable[Row]) -> list[str]:
    """Name what of the table is no longer so, by more than the tolerance; and what it has no row of, or one too many."""
    now, before = {row.key: row for row in found}, {row.key: row for row in held}
    texts = [f"{' '.join(key)}: not in the table" for key in now.keys() - before.keys()]
    texts += [f"{' '.join(key)}: not counted any more" for key in before.keys() - now.keys()]
    for key in now.keys() & before.keys():
        for name, count in now[key].counts.items():
            expected = before[key].counts[name]
            if abs(count - expected) > TOLERANCE * expected:
                texts.append(f"{' '.join(key)}: {name} {expected} -> {count}")
    return sorted(texts)


def faults(found: Iterable[Launch], held: Iterable[Row]) -> list[str]:
    """Name the differences to the table, and reads of what is not initialized."""
    found = list(found)
    return differences((launch.row for launch in found), held) + [
        f"{' '.join(launch.row.key)}: {launch.uninitialized} reads of shared memory that is not written yet"
        for launch in found
        if launch.uninitialized
    ]


# ---- what is printed --------------------------------------------------------------------------------------------------
def table(rows: Iterable[Row]) -> str:
    """Lay rows out as Markdown, sectors over the ideal."""
    lines = [
        "| op | kernel | pass | shape | dtype | ideal bytes | requested | blocks | launch | passes / least |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        sectors = (row.requested_sectors, row.block_sectors, row.launch_sectors)
        ratios = " | ".join(f"{row.ratio(count):.2f}x" for count in sectors)
        passes = f"{row.passes} / {row.least_passes}"
        lines.append(f"| {' | '.join(row.key)} | {row.ideal_bytes} | {ratios} | {passes} |")
    return "\n".join(lines)


def lines_table(launch: Launch, code: Sequence[sass.Instruction]) -> str:
    """Lay the lines of a launch out, beside the loads and stores of those lines in nvcc's code for sm_90."""
    head = f"{' '.join(launch.row.key)}"
    texts = [head, f"  {'line':24} {'memory':14} {'bytes':>5} {'accesses':>9} {'each':>6} {'least':>6}  nvcc"]
    for line in launch.lines:
        own = [at for at in code if f"{at.file}:{at.line}" == line.place and at.does(*_OPCODES[line.space, line.access])]
        names = Counter(at.opcode for at in own)
        machine = ", ".join(f"{name} x{count}" for name, count in sorted(names.items()))
        other = "" if not own or line.width in {at.width for at in own} else "  other widths"
        texts.append(
            f"  {line.place:24} {line.space + ' ' + line.access:14} {line.width:5} {line.warps:9} "
            f"{line.cost / line.warps:6.2f} {line.least_cost / line.warps:6.2f}  {machine}{other}"
        )
    return "\n".join(texts)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 1 if the table does not hold any more, or a kernel reads what is not initialized."""
    given = _parser().parse_args(arguments)
    if unknown := set(given.ops) - set(OPS):
        raise UsageError(f"no op with a CUDA kernel is named {min(unknown)!r}; choose from {', '.join(OPS)}")
    build()
    found = launches()
    shown = [launch for launch in found if not given.ops or launch.row.op in given.ops]
    if given.lines:
        code = {op: _code(op) for op in dict.fromkeys(launch.row.op for launch in shown)}
        print("\n\n".join(lines_table(one, code[one.row.op][instance(one.symbol)]) for one in shown))
    else:
        print(table(launch.row for launch in shown))
    if given.save:
        save(launch.row for launch in found)
        print(f"\n{len(found)} rows written to {TABLE}")
        return 0
    found_faults = faults(found, load())
    print("\n" + "\n".join(found_faults or [f"as in {TABLE}, within {TOLERANCE:.0%}"]))
    return 1 if found_faults else 0


def _code(op: str) -> dict[tuple[str, str], list[sass.Instruction]]:
    code = sass.disassemble(ROOT / "csrc" / "ops" / f"{op}.cu")
    return {instance(symbol): instructions for symbol, instructions in code.items()}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench traffic", usage=_USAGE, description=__doc__.partition("\n\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)}; without: all")
    parser.add_argument("--lines", action="store_true", help="by source line, beside nvcc's code")
    parser.add_argument("--save", action="store_true", help=f"write {TABLE.name} anew")
    return parser
