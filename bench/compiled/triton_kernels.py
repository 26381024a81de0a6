"""`python -m bench.compiled.triton_kernels`: compile Triton kernels for all architectures; registers, spills, widths.

Needs triton, no GPU. Kernels are compiled with the arguments that the ops give them, on shapes of the recipes.
"""

import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from bench.compiled import triton_code
from bench.compiled.cuda_kernels import ARCHITECTURES, Kernel, parse, table
from bimkern.ops._triton import group_attention, masked_loss, masked_pixel_loss, pixel_targets

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
# Float16 compiles to what bfloat16 does, but for its conversions, and float64 takes most registers where tiles and
# patches are largest: one shape is enough.
_LENGTHS = {
    torch.float32: (27, 96, 588, 768),
    torch.bfloat16: (27, 96, 588, 768),
    torch.float16: (588,),
    torch.float64: (768,),
}
_PATCHES = {
    torch.float32: (8, 14, 16, 32),
    torch.bfloat16: (8, 14, 16, 32),
    torch.float16: (14,),
    torch.float64: (32,),
}
_HEADS = {torch.float32: (32, 64), torch.bfloat16: (32,), torch.float64: (64,)}  # channels
_MEMBERS = 49  # of a group; more of them only make more blocks


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What an op starts; label tells launches of one kernel apart."""

    kernel: Any
    label: str
    args: tuple[Any, ...]
    num_warps: int
    constants: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel for one architecture; loads and stores of global memory, a thread's: bytes -> how many."""

    kernel: Kernel
    loads: Counter[int]
    stores: Counter[int]
    arithmetic_in_16_bits: list[str]


def launches() -> list[Launch]:
    """Call the ops on tensors that hold nothing, and note what they would start."""
    found: list[Launch] = []
    for op, module, arguments, letter, sizes in (
        ("masked_loss", masked_loss, _rows, "P", _LENGTHS),
        ("masked_pixel_loss", masked_pixel_loss, _patches, "p", _PATCHES),
    ):
        for dtype, size in ((dtype, size) for dtype, choices in sizes.items() for size in choices):
            label = f"{str(dtype).removeprefix('torch.')} {letter}={size}"
            forward = arguments(dtype, size)
            found += _noted(label, getattr(module, op), forward)
            grad = torch.empty((), dtype=_wide(dtype), device="meta")
            found += _noted(label, getattr(module, f"{op}_bwd"), (grad, *forward))
    for dtype in (torch.float32, torch.float64):
        for patch in _PATCHES[dtype]:
            _, images, _, _, mean, std, *_ = _patches(dtype, patch)
            label = f"{str(dtype).removeprefix('torch.')} p={patch}"
            found += _noted(label, pixel_targets.pixel_targets, (images, mean, std, patch, True, dtype))
    for dtype, width in ((dtype, width) for dtype, choices in _HEADS.items() for width in choices):
        label, inputs = f"{str(dtype).removeprefix('torch.')} d={width}", _attention(dtype, width)
        found += _noted(label, group_attention.group_attention_fwd, inputs)
        grad = torch.empty(2, 2 * _MEMBERS, 4 * width, dtype=dtype, device="meta")
        logsumexp = torch.empty(2, 4, 2 * _MEMBERS, dtype=_wide(dtype), device="meta")
        found += _noted(label, group_attention.group_attention_bwd, (grad, logsumexp, *inputs))
    return list({(launch.kernel.__name__, launch.label): launch for launch in found}.values())


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic with predictions of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(dtype: torch.dtype, length: int) -> tuple[Any, ...]:
    wide = _wide(dtype)
    pred, target = (torch.empty(2, 49, length, dtype=kind, device="meta") for kind in (dtype, wide))
    weight, denominator = (torch.empty(size, dtype=wide, device="meta") for size in ((2, 49), ()))
    return pred, target, weight, denominator, False


def _patches(dtype: torch.dtype, patch: int) -> tuple[Any, ...]:
    wide = _wide(dtype)
    pixels = torch.float64 if wide == torch.float64 else torch.uint8
    images = torch.empty(2, 3, 4 * patch, 4 * patch, dtype=pixels, device="meta")
    pred = torch.empty(2, 16, 3 * patch**2, dtype=dtype, device="meta")
    weight, denominator, mean = (torch.empty(size, dtype=wide, device="meta") for size in ((2, 16), (), (3,)))
    return pred, images, weight, denominator, mean, mean, patch, True, False


def _attention(dtype: torch.dtype, width: int) -> tuple[Any, ...]:
    """Four heads, two groups full of tokens."""
    qkv = torch.empty(2, 2 * _MEMBERS, 3 * 4 * width, dtype=dtype, device="meta")
    table = torch.empty((2 * math.isqrt(_MEMBERS) - 1) ** 2, 4, dtype=_wide(dtype), device="meta")
    members = torch.empty(1, 2, _MEMBERS, dtype=torch.int32, device="meta")
    windows = members.view(1, -1)
    return qkv, table, members, windows, windows, 4, width**-0.5


def _noted(label: str, op: Any, args: tuple[Any, ...]) -> list[Launch]:
    found: list[Launch] = []

    def note(kernel: Any, programs: int, *args: Any, num_warps: int, **constants: Any) -> None:
        name = str(args[0].dtype).removeprefix("torch.") if kernel is masked_loss.add_partials else label
        found.append(Launch(kernel=kernel, label=name, args=args, num_warps=num_warps, constants=constants))

    with (
        mock.patch.object(group_attention, "launch", note),
        mock.patch.object(masked_loss, "launch", note),
        mock.patch.object(masked_pixel_loss, "launch", note),
        mock.patch.object(pixel_targets, "launch", note),
    ):
        op(*args)
    return found


def compile_kernels() -> Iterator[Compiled]:
    """Compile all of them for all architectures."""
    for launch in launches():
        for arch in ARCHITECTURES:
            yield _compiled(launch, arch)


def _compiled(launch: Launch, arch: int) -> Compiled:
    constants: dict[Any, Any] = dict(launch.constants)
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}

    def describe(value: Any, *path: int) -> Any:
        """Return an argument's type, and note what Triton makes a constant or aligned at a launch."""
        if isinstance(value, tuple):
            return tuple(describe(item, *path, i) for i, item in enumerate(value))
        if value is None or (isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, Tensor) or value % 16 == 0:  # torch aligns its memory
            attrs[path] = [["tt.divisibility", 16]]
        return _POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"

    names = launch.kernel.arg_names
    signature = {name: describe(value, i) for i, (name, value) in enumerate(zip(names, launch.args, strict=False))}
    signature |= dict.fromkeys(launch.constants, "constexpr")
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": launch.num_warps, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={sm_arch_from_capability(arch)}", str(ptx)]
        done = subprocess.run([*command, "-o", f"{folder}/kernel.cubin"], capture_output=True, text=True, check=True)
    (kernel,) = parse(done.stderr, f"bimkern/ops/_triton/{launch.kernel.__module__.rpartition('.')[2]}.py")
    name = f"{launch.kernel.__name__}[{launch.label}]"
    loads, stores = triton_code.widths(compiled.asm["ptx"])
    return Compiled(
        kernel=replace(kernel, name=name, arch=arch, shared=compiled.metadata.shared),
        loads=loads,
        stores=stores,
        arithmetic_in_16_bits=triton_code.arithmetic_in_16_bits(compiled.asm["ttir"]),
    )


def widths_table(found: list[Compiled]) -> str:
    """Lay out loads and stores as Markdown, `4x16 1x4` for four of 16 bytes and one of 4."""
    head = "| kernel (a thread's loads, number x bytes / stores) | " + " | ".join(
        f"sm_{arch}" for arch in ARCHITECTURES
    )
    lines = [f"{head} |", "|---" * (1 + len(ARCHITECTURES)) + "|"]
    by_name: dict[str, dict[int, str]] = {}
    for one in found:
        cell = f"{_counted(one.loads)} / {_counted(one.stores)}"
        by_name.setdefault(one.kernel.name, {})[one.kernel.arch] = cell
    lines += [f"| `{name}` | {' | '.join(cells[arch] for arch in ARCHITECTURES)} |" for name, cells in by_name.items()]
    return "\n".join(lines)


def _counted(accesses: Counter[int]) -> str:
    return " ".join(f"{count}x{width}" for width, count in sorted(accesses.items(), reverse=True))


def main() -> int:
    found = list(compile_kernels())
    spilling = [one for one in found if one.kernel.spills]
    narrow = [f"{one.kernel.name}: {line}" for one in found for line in one.arithmetic_in_16_bits]
    print(table([one.kernel for one in found]), widths_table(found), *narrow, sep="\n\n")
    print(f"\n{len(spilling)} of {len(found)} compiled Triton kernels spill registers")
    print(f"{len(narrow)} operations compute in 16 bits, which the interpreter does wrong in bfloat16")
    return 1 if spilling or narrow else 0


if __name__ == "__main__":
    sys.exit(main())
