"""`python -m bench.gpu_check`: everything that can only be seen on a GPU, in one folder, in under eight minutes.

Builds for this GPU, asserts that the kernels serve their ops, runs the tests, watches every kernel with
compute-sanitizer, runs the bench entries and some hundred training steps. Nothing is fetched. A part that fails does
not stop the others; then the exit code is 1.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from bench.entries import step
from bench.entry import discover
from bench.peaks import mfu
from bench.results import ResultsError, newest, provenance

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 470.0  # for all parts together
_ENTRY_SECONDS = 80.0  # torch.compile takes most of them
_FIRST_ENTRIES = ("gather_tokens", "restore_tokens", "embed_visible", "hog")  # what a training step waits for
_LEFT_OUT = ("cold_sources", "loaders", "packed", "sources")  # read images, which has nothing to do with the kernels
_RECIPES = ("bim_vit_base", "mae_vit_base", "bim_vit_large", "mae_vit_large")
# They run commands, whose packages a GPU machine may lack, or compilers.
_WITHOUT_GPU_CASES = (
    *(f"tests/test_{name}.py" for name in ("attention", "demo", "docs", "examples")),
    *(f"tests/test_{name}.py" for name in ("export", "finetune", "info", "layers", "pack", "plan")),
    *(f"tests/test_{name}.py" for name in ("plan_ranks", "pretrain", "probe")),
    "tests/data/test_addresses.py",
    *("tests/cli", "tests/test_stranger.py", "tests/examples", "tests/train/test_finetune_runs.py"),
    *(f"tests/train/test_{name}.py" for name in ("adapters", "allocator", "api", "bad_images", "budget", "channels")),
    *(f"tests/train/test_{name}.py" for name in ("distilled_runs", "estimate", "extended_runs", "faults", "full_disk")),
    *(f"tests/train/test_{name}.py" for name in ("held_out", "initialized_runs", "loggers", "output", "reads", "run")),
    *(f"tests/train/test_{name}.py" for name in ("run_from_python", "schedule_of_a_run", "second_encoder", "signals")),
    *(f"tests/train/test_{name}.py" for name in ("size_changes", "size_changes_bad_images", "small_recipes", "starts")),
    *(f"tests/recipes/test_{name}.py" for name in ("backbones", "own_pieces", "swin_bad_input", "swin_recipes")),
    *(
        f"tests/train/test_{name}.py"
        for name in ("decoded_runs", "finetune_api", "normalization", "rectangular_runs", "sources", "swin_runs")
    ),
    *(f"tests/train/test_{name}.py" for name in ("graphed_runs", "image_records", "many_images")),
    *("tests/csrc", "tests/bench", "tests/distributed"),
)


_GPU_ARENA = {"BIMKERN_TEST_GPU_ARENA": "1"}
_REFUSAL = "Device not supported"  # compute-sanitizer's
_NO_DALI = "DALI cannot be used"  # that of bimkern.data.regions


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command and its own limit in seconds.

    A part that may_be_absent is not run where there is no such program, nor where the machine does not allow it, which
    the refusal in its output tells; any other then failed.
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    may_be_absent: bool = False
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    part: Part
    result: str  # passed, failed: ..., not run: ...
    seconds: float

    @property
    def failed(self) -> bool:
        return self.result.startswith("failed")


def parts(folder: Path, arch: str) -> list[Part]:
    """List what is to be done on a GPU of architecture arch ("90")."""
    python, build, csv = sys.executable, "build/gpu", str(folder / "cuda.csv")
    entries = [name for name in discover() if name not in (step.NAME, *_FIRST_ENTRIES, *_LEFT_OUT)]
    bench = [python, "-m", "bench"]
    save = ["--device", "cuda", "--out", csv]
    left_out = [f"--ignore={path}" for path in _WITHOUT_GPU_CASES]
    flags = f"-DBIMKERN_CUDA=ON -DBIMKERN_BRIDGE=ON -DBIMKERN_CUDA_ARCHS={arch}"
    files = ["tests/arena/test_arena.py", "tests/arena/test_streams.py", "tests/train/test_graphs.py"]
    arena = [python, "-m", "pytest", *files, "-k", "cuda", "-rs"]
    make = ["make", "build", f"PYTHON={python}", f"BUILD={build}", f"CMAKE_FLAGS={flags}"]
    return [
        Part(name="build", command=make, limit=150),
        Part(name="arena", command=[python, "-m", "bimkern.arena.build"], limit=90),  # or the tests would build it
        Part(name="native", command=[python, "-m", "bench.native"], limit=60),
        Part(name="info", command=[python, "-m", "bimkern.info"], limit=60),
        # Where it fails a run decodes whole images.
        Part(
            name="dali-regions",
            command=[python, "-m", "bimkern.data.regions", "cuda"],
            limit=60,
            may_be_absent=True,
            refusal=_NO_DALI,
        ),
        Part(name="native-tests", command=["ctest", "--test-dir", build, "--output-on-failure"], limit=60),
        Part(name="tests", command=[python, "-m", "pytest", "tests", *left_out, "-k", "cuda", "-rs"], limit=120),
        # A process of its own, where the arena has replaced torch's allocator.
        Part(name="arena-tests", command=arena, limit=90, environment=_GPU_ARENA),
        _sanitizer("memcheck", "--report-api-errors", "no"),  # torch asks for what a driver may lack, and copes
        _sanitizer("racecheck"),
        # Whatever kernel touches the driver's pool before it may, or what it has given back.
        Part(
            name="arena-memcheck",
            command=[
                *_watched("memcheck", "--report-api-errors", "no", "--track-stream-ordered-races", "all"),
                *(python, "-m", "pytest", "tests/arena/test_streams.py", "-k", "cuda", "-rs"),
            ],
            limit=90,
            environment=_GPU_ARENA,
            may_be_absent=True,
            refusal=_REFUSAL,
        ),
        *(_entry(name, save) for name in _FIRST_ENTRIES),
        Part(
            name="steps",
            command=[*bench, "step", *_RECIPES, *save, "--rounds", "100", "--batch-size", "128"],
            limit=150,
        ),
        *(_entry(name, save) for name in entries),
    ]


def _entry(name: str, options: Sequence[str]) -> Part:
    command = [sys.executable, "-m", "bench", name, *options, "--rounds", "30"]
    return Part(name=f"bench-{name}", command=command, limit=_ENTRY_SECONDS)


def _sanitizer(tool: str, *options: str) -> Part:
    watched = [sys.executable, "-m", "bench.odd_shapes", "--device", "cuda"]
    return Part(
        name=tool,
        # Kernels of torch and cuBLAS run as they are: only ours, by their namespace, are watched.
        command=[*_watched(tool, "--kernel-name", "kns=bimkern", *options), *watched],
        limit=90,
        # With torch's cache an access beyond a tensor would still fall into memory that is allocated.
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        may_be_absent=True,
        refusal=_REFUSAL,
    )


def _watched(tool: str, *options: str) -> list[str]:
    return ["compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "1"]


def run(part: Part, log: Path, limit: float) -> Outcome:
    """Run a part with its output in a log; past its limit it is killed, with all that it started."""
    if shutil.which(part.command[0]) is None:
        kind = "not run" if part.may_be_absent else "failed"
        return Outcome(part=part, result=f"{kind}: {part.command[0]} is not on the PATH", seconds=0.0)
    if limit <= 0:
        return Outcome(part=part, result="failed: no time was left", seconds=0.0)
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=os.environ | part.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            result = "passed" if code == 0 else f"failed: exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            result = f"failed: not done after {limit:.0f} s"
    if result != "passed" and part.may_be_absent and part.refusal and part.refusal in log.read_text(errors="replace"):
        result = f"not run: {part.refusal}"
    return Outcome(part=part, result=result, seconds=time.monotonic() - start)


def run_all(chosen: Sequence[Part], folder: Path, seconds: float) -> list[Outcome]:
    """Run parts one after another within a limit for all of them."""
    end = time.monotonic() + seconds
    outcomes = []
    for part in chosen:
        log = folder / f"{part.name}.log"
        outcomes.append(run(part, log, min(part.limit, end - time.monotonic())))
        print(f"{part.name:20} {outcomes[-1].seconds:6.0f} s  {outcomes[-1].result}", flush=True)
    return outcomes


def summary(title: str, outcomes: Sequence[Outcome], csv: Path) -> str:
    """Write Markdown: a row for every part, and one for every case that was measured."""
    lines = [f"# {title}", "", "| part | result | seconds | log |", "|---|---|---|---|"]
    lines += [f"| {o.part.name} | {o.result} | {o.seconds:.0f} | {o.part.name}.log |" for o in outcomes]
    try:
        cases = newest(csv)
    except ResultsError as error:
        return "\n".join([*lines, "", f"Nothing was measured: {error}", ""])
    columns = ("case", "median", "share of ceiling", "MFU", "extra memory", "rivals' time / ours")
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for first, *rivals in cases:
        name = " ".join(first[column] for column in ("op", "backend", "pass", "dtype", "shape") if first[column])
        share = f"{float(first['share']):.0%} of {first['ceiling']}" if first["share"] else ""
        utilization = mfu(first)
        used = "" if utilization is None else f"{utilization:.0%}"
        others = ", ".join(f"{row['provider']} {float(row['ratio']):.2f}" for row in rivals)
        extra = f"{int(first['extra_bytes']) / 2**20:.1f} MiB"
        lines.append(f"| {name} | {float(first['median_us']):.1f} us | {share} | {used} | {extra} | {others} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=(__doc__ or "").splitlines()[0])
    default = ROOT / "runs" / f"gpu-check-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--out", type=Path, default=default, help="folder for logs, rows and summary.md")
    folder: Path = parser.parse_args().out.resolve()
    if not torch.cuda.is_available():
        print("bench.gpu_check: torch sees no CUDA device; `make gpu-dry` is what can be done without", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    outcomes = run_all(parts(folder, f"{major}{minor}"), folder, _SECONDS)
    title = "{device_name}, torch {torch}, commit {commit}, {date}".format_map(provenance(torch.device("cuda")))
    text = summary(title, outcomes, folder / "cuda.csv")
    (folder / "summary.md").write_text(text)
    print(f"\n{text}\n{folder / 'summary.md'}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
