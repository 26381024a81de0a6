"""Results: rows of a CSV file, each with all that its figures depend on."""

import csv
import functools
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent / "results"
KEY = ("op", "provider", "pass", "shape", "dtype", "device", "torch", "commit")
_CASE = ("op", "pass", "shape", "dtype", "device", "device_name", "threads")  # machines do not mix


class ResultsError(ValueError):
    """A file of results cannot be read or added to; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One provider of one case. Times are of one call; a ratio above 1 is slower than the first provider."""

    op: str
    provider: str
    pass_: str
    shape: str
    dtype: str
    device: str
    torch: str
    commit: str
    date: str
    device_name: str
    threads: int
    backend: str  # what served the op: native, triton, reference; empty for rivals
    rounds: int
    median_us: float
    p20_us: float
    p80_us: float
    cold_median_us: float | None  # with cold malloc; a CPU's
    ratio: float
    gb_per_s: float | None
    tflop_per_s: float | None
    share: float | None  # of the ceiling that binds: ideal time / median
    ceiling: str  # copy or matrix
    ceiling_value: float | None  # GB/s of the copy, TFLOP/s of the product, in the same run
    extra_bytes: int
    items_per_s: float | None
    gflop_per_item: float | None  # of matrix products, as they are counted
    live_bytes: int | None  # activations of a training step and their gradients, at most at once
    process_median_us: float | None  # CPU time of all threads of the process; of steps on a CPU

    @property
    def label(self) -> str:
        return f"{self.provider} ({self.backend})" if self.backend else self.provider

    @property
    def own_us(self) -> float:
        """The median time that other programs lengthen least."""
        return self.process_median_us or self.median_us


COLUMNS = [f.name.rstrip("_") for f in fields(Row)]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a CSV file, which is begun where there is none.

    Raises:
        ResultsError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        _check_columns(path)
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_text(value) for value in asdict(row).values()])


def newest(path: Path) -> list[list[dict[str, str]]]:
    """Read the rows of every case, a list each, as they were measured together the last time.

    Raises:
        ResultsError: there is no such file, it holds no rows, or it has other columns.
    """
    if not path.exists():
        raise ResultsError(f"{path}: no such file; `python -m bench` writes one")
    _check_columns(path)
    cases: dict[tuple[str, ...], list[dict[str, str]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file, restval=""):  # rows of before there was a column are shorter
            case = cases.setdefault(tuple(row[column] for column in _CASE), [])
            if case and case[0]["date"] != row["date"]:
                case.clear()
            case.append(row)
    if not cases:
        raise ResultsError(f"{path}: holds no rows")
    return list(cases.values())


def _check_columns(path: Path) -> None:
    with path.open(newline="") as file:
        header = next(csv.reader(file), [])
    if header != COLUMNS:
        raise ResultsError(f"{path}: has other columns than this version writes; move it away or choose another --out")


def _text(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what the figures of this process depend on, as columns of a row."""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(Path(__file__).resolve().parent.parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def commit(root: Path) -> str:
    """Return the short commit of a working tree, marked -dirty where it differs by more than results; or unknown."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return git("rev-parse", "--short=10", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
