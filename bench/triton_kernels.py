"""`python -m bench.triton_kernels`: compile Triton kernels for every architecture; registers, shared memory, spills.

Needs triton, no GPU. Kernels are compiled with the arguments that the ops give them, on shapes of the recipes.
"""

import subprocess
import sys
import tempfile
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

from bench.kernels import ARCHITECTURES, Kernel, parse, table
from bimkern.ops._triton import masked_loss, masked_pixel_loss, pixel_targets

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
}
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What an op starts; label tells launches of one kernel apart."""

    kernel: Any
    label: str
    args: tuple[Any, ...]
    num_warps: int
    constants: dict[str, Any]


def launches() -> list[Launch]:
    """Call the ops on tensors that hold nothing, and note what they would start."""
    found: list[Launch] = []
    for dtype, name in _NAMES.items():
        for length in (27, 96, 768, 3072):
            found += _noted(f"{name} P={length}", lambda args: masked_loss.masked_loss(*args), _rows(dtype, length))
            backward = (torch.empty((), device="meta"), *_rows(dtype, length))
            found += _noted(f"{name} P={length}", lambda args: masked_loss.masked_loss_bwd(*args), backward)
        for patch in (8, 16, 32):
            forward = _patches(dtype, patch)
            found += _noted(f"{name} p={patch}", lambda args: masked_pixel_loss.masked_pixel_loss(*args), forward)
            backward = (torch.empty((), device="meta"), *forward)
            found += _noted(f"{name} p={patch}", lambda args: masked_pixel_loss.masked_pixel_loss_bwd(*args), backward)
    for patch in (8, 16, 32):
        _, images, _, _, mean, std, *_ = _patches(torch.float32, patch)
        args = (images, mean, std, patch, True, torch.float32)
        found += _noted(f"p={patch}", lambda args: pixel_targets.pixel_targets(*args), args)
    return list({(launch.kernel.__name__, launch.label): launch for launch in found}.values())


def _rows(dtype: torch.dtype, length: int) -> tuple[Any, ...]:
    pred, target = (torch.empty(2, 49, length, dtype=kind, device="meta") for kind in (dtype, torch.float32))
    return pred, target, torch.empty(2, 49, device="meta"), torch.empty((), device="meta"), False


def _patches(dtype: torch.dtype, patch: int) -> tuple[Any, ...]:
    images = torch.empty(2, 3, 4 * patch, 4 * patch, dtype=torch.uint8, device="meta")
    pred, weight = torch.empty(2, 16, 3 * patch**2, dtype=dtype, device="meta"), torch.empty(2, 16, device="meta")
    mean = torch.empty(3, device="meta")
    return pred, images, weight, torch.empty((), device="meta"), mean, mean, patch, True, False


def _noted(label: str, op: Any, args: tuple[Any, ...]) -> list[Launch]:
    found: list[Launch] = []

    def note(kernel: Any, programs: int, *args: Any, num_warps: int, **constants: Any) -> None:
        name = "" if kernel is masked_loss.add_partials else label
        found.append(Launch(kernel=kernel, label=name, args=args, num_warps=num_warps, constants=constants))

    with (
        mock.patch.object(masked_loss, "launch", note),
        mock.patch.object(masked_pixel_loss, "launch", note),
        mock.patch.object(pixel_targets, "launch", note),
    ):
        op(args)
    return found


def compile_kernels() -> Iterator[Kernel]:
    """Compile all of them for all architectures."""
    for launch in launches():
        for arch in ARCHITECTURES:
            yield _compiled(launch, arch)


def _compiled(launch: Launch, arch: int) -> Kernel:
    names = launch.kernel.arg_names
    signature = {name: _type(value) for name, value in zip(names, launch.args, strict=False)}
    signature |= dict.fromkeys(launch.constants, "constexpr")
    # torch aligns its memory, which lets kernels load and store vectors.
    attrs = {(i,): [["tt.divisibility", 16]] for i, value in enumerate(launch.args) if isinstance(value, Tensor)}
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=launch.constants, attrs=attrs)
    options = {"num_warps": launch.num_warps, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={sm_arch_from_capability(arch)}", str(ptx)]
        done = subprocess.run([*command, "-o", f"{folder}/kernel.cubin"], capture_output=True, text=True, check=True)
    (kernel,) = parse(done.stderr, f"bimkern/ops/_triton/{launch.kernel.__module__.rpartition('.')[2]}.py")
    return replace(kernel, name=f"{launch.kernel.__name__}[{launch.label}]", arch=arch, shared=compiled.metadata.shared)


def _type(value: Any) -> str:
    return _POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"


def main() -> int:
    kernels = list(compile_kernels())
    print(table(kernels))
    spilling = [kernel for kernel in kernels if kernel.spills]
    print(f"\n{len(spilling)} of {len(kernels)} compiled Triton kernels spill registers")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
