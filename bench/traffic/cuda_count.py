"""Counts of the memory traffic of CUDA kernels, which run in the stand-in for CUDA of tests/csrc/host_cuda."""

import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.compiled.cuda_kernels import ROOT
from bench.traffic import tables

BUILD = ROOT / "build" / "traffic"
PROGRAM = BUILD / "tests" / "csrc" / "host_cuda" / "traffic_host_cuda"


class TrafficError(Exception):
    """Counting failed; the message says why."""


class TrafficUnavailable(TrafficError):
    """This machine cannot count: a tool is missing, or the stand-in for CUDA does not run here."""


@dataclass(frozen=True, kw_only=True)
class Row(tables.Row):
    """A kernel in one case. Sectors have 32 bytes."""

    op: str
    kernel: str
    pass_: str
    shape: str
    dtype: str
    ideal_bytes: int
    accesses: int  # of whole warps to global memory
    requested_sectors: int
    block_sectors: int
    launch_sectors: int
    passes: int
    least_passes: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a line of a kernel does to one memory by accesses of one width. Cost: sectors, or passes over the banks."""

    position: str  # file:line
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
        read, written = ({line.position for line in shared if line.access == access} for access in ("read", "write"))
        chosen = (read & written) | {line.position for line in shared if line.access == "atomic"}
        return max((line.cost / line.least_cost for line in shared if line.position not in chosen), default=1.0)


def build() -> None:
    """Compile the kernels with a counter at each access.

    Raises:
        TrafficError: they do not compile.
        TrafficUnavailable: a tool is missing, or this machine cannot run the stand-in for CUDA.
    """
    for tool in ("cmake", "ninja", "addr2line"):
        if shutil.which(tool) is None:
            raise TrafficUnavailable(f"{tool} was not found, which counting needs")
    options = ("-DBIMKERN_CUDA=OFF", "-DBIMKERN_BRIDGE=OFF")
    _run(["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options])
    printed = _run(["cmake", "--build", str(BUILD), "--target", PROGRAM.name])
    if not PROGRAM.exists():
        raise TrafficUnavailable(printed)  # says why it is not built here


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
    positions = _positions({at["address"] - 1 for launch in found for at in launch["instructions"]})
    return [_launch(launch, dict(zip(kernels, functions, strict=True)), positions) for launch in found]


def _positions(addresses: Iterable[int]) -> dict[int, str]:
    """Return file:line of each address; where it is in a function of the stand-in, those of the call."""
    found = {}
    for part in _addr2line(["-a", "-i"], addresses).split("0x")[1:]:
        address, *frames = part.split("\n")[:-1]
        positions = (re.sub(r".*/| .*", "", frame) for frame in frames)
        found[int(address, 16)] = next(position for position in positions if not position.startswith("intrinsics.h:"))
    return found


def _addr2line(options: Sequence[str], addresses: Iterable[int]) -> str:
    return _run(["addr2line", *options, "-e", str(PROGRAM)], "".join(f"{address:#x}\n" for address in addresses))


def _launch(found: dict[str, Any], functions: dict[int, str], positions: dict[int, str]) -> Launch:
    totals: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for at in found["instructions"]:
        key = (positions[at["address"] - 1], at["space"], at["access"], at["width"])
        totals[key].update({name: at[name] for name in ("warps", "cost", "least_cost")})
    lines = tuple(
        Line(position=position, space=space, access=access, width=width, **count)
        for (position, space, access, width), count in sorted(totals.items())
    )
    memory, shared = ([line for line in lines if line.space == space] for space in ("global", "shared"))
    symbol = functions[found["kernel"]]
    row = Row(
        op=found["op"],
        kernel=kernel_name(symbol),
        pass_=found["pass"],
        shape=found["shape"],
        dtype=found["dtype"],
        ideal_bytes=found["ideal"],
        accesses=sum(line.warps for line in memory),
        requested_sectors=sum(line.cost for line in memory),
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
