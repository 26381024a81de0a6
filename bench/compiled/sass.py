"""The machine code that nvcc makes of a CUDA file: what each instruction is, and of which line. Needs no GPU.

nvcc compiles, the disassembler of Triton's wheel reads.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.compiled.cuda_kernels import ROOT, CompileError

ARCHITECTURE = 90

_KERNEL = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_LINE = re.compile(r'//## File "([^"]+)", line (\d+)(?: inlined at)?')
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]*)")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with what follows its dots: LDG.E.128
    file: str  # empty: of no line
    line: int

    @property
    def width(self) -> int:
        """Return the bytes that a load or store moves for a lane."""
        return next((_BYTES[part] for part in self.opcode.split(".") if part in _BYTES), 4)

    def does(self, *opcodes: str) -> bool:
        """Return whether it is one of these: LDG, STG."""
        return self.opcode.partition(".")[0] in opcodes


def disassemble(path: Path) -> dict[str, list[Instruction]]:
    """Compile a CUDA file for one architecture; return the instructions of each of its kernels, by their symbols.

    Raises:
        CompileError: nvcc or triton is not installed, or nvcc refuses the file.
    """
    if shutil.which("nvcc") is None:
        raise CompileError("no nvcc on the PATH")
    nvdisasm = _nvdisasm()
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/kernels.cubin"
        command = ["nvcc", "-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", f"-arch=sm_{ARCHITECTURE}", "-lineinfo", "-cubin"]
        done = subprocess.run([*command, str(path), "-o", cubin], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(done.stderr)
        done = subprocess.run([nvdisasm, "-g", "-c", cubin], capture_output=True, text=True, check=True)
    return parse(done.stdout)


def _nvdisasm() -> Path:
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        raise CompileError("triton is not installed, whose disassembler reads nvcc's code: pip install triton")
    return Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"


def parse(listing: str) -> dict[str, list[Instruction]]:
    """Read what `nvdisasm -g` prints."""
    names, parts = _KERNEL.findall(listing), _KERNEL.split(listing)[2::2]
    return {name: _instructions(part) for name, part in zip(names, parts, strict=True)}


def _instructions(part: str) -> list[Instruction]:
    found = []
    file, line = "", 0
    for text in part.splitlines():
        if position := _LINE.search(text):
            file, line = Path(position[1]).name, int(position[2])
        elif code := _INSTRUCTION.search(text):
            found.append(Instruction(code[1], file, line))
    return found
