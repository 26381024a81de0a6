"""`python -m bench.compiled.cuda_kernels`: compile CUDA kernels for all architectures; registers, memory, spills.

Needs nvcc, no GPU. For the Triton kernels: `python -m bench.compiled.triton_kernels`.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)
CUDA_FILES = sorted((ROOT / "csrc").rglob("*.cu"))

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)\w*'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class CompileError(RuntimeError):
    """nvcc refused a file; the message is its own."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What ptxas says of one kernel on one architecture; bytes of spills are stores and loads together."""

    file: str
    name: str
    arch: int
    registers: int
    shared: int
    spills: int


def compile_kernels(path: Path) -> list[Kernel]:
    """Compile one file for all architectures.

    Raises:
        CompileError: it does not compile.
    """
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", *targets, "-Xptxas", "-v", "-c", str(path)]
        done = subprocess.run([*command, "-o", f"{folder}/out.o"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(done.stderr)
    return parse(done.stderr, path.relative_to(ROOT).as_posix())


def parse(report: str, file: str) -> list[Kernel]:
    """Read what `ptxas -v` prints."""
    kernels = []
    for start, part in zip(_ENTRY.finditer(report), _ENTRY.split(report)[3::3], strict=True):
        spills, used = _SPILLS.search(part), _USED.search(part)
        assert spills is not None, f"ptxas says nothing of spills:\n{part}"
        assert used is not None, f"ptxas says nothing of registers:\n{part}"
        kernels.append(
            Kernel(
                file=file,
                name=start[1],
                arch=int(start[2]),
                registers=int(used[1]),
                shared=int(used[2] or 0),
                spills=int(spills[1]) + int(spills[2]),
            )
        )
    return kernels


def table(kernels: list[Kernel]) -> str:
    """Lay kernels out as Markdown, the architectures of one side by side: registers / shared bytes / spilled bytes."""
    head = " | ".join(f"sm_{arch}" for arch in ARCHITECTURES)
    lines = [f"| kernel (registers / shared bytes / spilled bytes) | {head} |", "|---" * (1 + len(ARCHITECTURES)) + "|"]
    by_name: dict[tuple[str, str], dict[int, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault((kernel.file, kernel.name), {})[kernel.arch] = kernel
    plain = _demangle([name for _, name in by_name])
    for ((file, _), found), name in zip(by_name.items(), plain, strict=True):
        cells = [f"{k.registers} / {k.shared} / {k.spills}" for k in (found[arch] for arch in ARCHITECTURES)]
        lines.append(f"| {file}: `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _demangle(names: list[str]) -> list[str]:
    """Turn symbols into readable names where the machine has c++filt; drop namespaces and arguments."""
    if shutil.which("c++filt") is None or not names:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = [re.sub(r"\([^()]*\)$", "", line).removeprefix("void ") for line in done.stdout.splitlines()]
    return [re.sub(r"\(anonymous namespace\)::|\b\w+::", "", name) for name in plain]


def main() -> int:
    if shutil.which("nvcc") is None:
        print("bench.compiled.cuda_kernels: no nvcc on the PATH", file=sys.stderr)
        return 2
    try:
        kernels = [kernel for path in CUDA_FILES for kernel in compile_kernels(path)]
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(kernels))
    spilling = [kernel for kernel in kernels if kernel.spills]
    print(f"\n{len(spilling)} of {len(kernels)} compiled kernels spill registers")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
