"""The memory traffic of the Triton kernels, counted in Triton's interpreter, without a GPU.

Against the bytes that an op has to move at least:

    asked      bytes that its loads, stores and atomic additions ask for
    requested  32-byte sectors that they touch, each of them by a block on its own
    blocks     distinct sectors of each block, added up: what a perfect L1 cache leaves
    launch     distinct sectors of all its launches: what a perfect L2 cache leaves

The interpreter knows blocks (Triton's programs), not warps: `python -m bench.compiled.triton_kernels` shows how wide a
thread's accesses are. Shapes are those of ViT-B, one image at patch 16 and 14, 75 % of its patches masked; of
attention, those of the third stage of Swin-B, but for 4 of its 16 heads.

`python -m bench traffic` runs this as a program, which writes CSV: one process cannot both interpret and compile.
"""

import importlib.util
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.compiled.cuda_kernels import ROOT
from bench.traffic import tables
from bench.traffic.cuda_count import TrafficError, TrafficUnavailable
from bimkern.ops import group_windows

OPS = ("group_attention", "masked_loss", "masked_pixel_loss", "pixel_targets")
_IMAGES, _PATCHES = 1, 196


@dataclass(frozen=True, kw_only=True)
class Row(tables.Row):
    """The traffic of one call of an op. Sectors have 32 bytes."""

    op: str
    pass_: str
    shape: str
    dtype: str
    ideal_bytes: int
    asked_bytes: int
    requested_sectors: int
    block_sectors: int
    launch_sectors: int


def table(found: Iterable[Row]) -> str:
    """Lay rows out as Markdown, over the ideal."""
    lines = [
        "| op | pass | shape | dtype | ideal bytes | asked | requested | blocks | launch |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        sectors = (row.requested_sectors, row.block_sectors, row.launch_sectors)
        ratios = (row.asked_bytes / row.ideal_bytes, *map(row.ratio, sectors))
        cells = (row.op, row.pass_, row.shape, row.dtype, str(row.ideal_bytes), *(f"{ratio:.2f}x" for ratio in ratios))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rows() -> list[Row]:
    """Count all of it, in a process whose Triton interprets.

    Raises:
        TrafficError: that process failed.
        TrafficUnavailable: triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        raise TrafficUnavailable("triton is not installed, whose interpreter counts the Triton kernels' traffic")
    command = [sys.executable, "-m", "bench.traffic.triton_count"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TrafficError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return tables.read(Row, done.stdout)


def _count() -> Iterator[Row]:
    """Run every op in this process, whose Triton interprets."""
    yield from _count_attention()
    yield from _count_losses()


def _count_attention() -> Iterator[Row]:
    from bimkern.ops._triton.group_attention import group_attention_bwd, group_attention_fwd

    units = (torch.arange(49) % 4 == 0).view(7, 7)  # of 2 x 2 tokens
    visible = units.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1).flatten()
    keep = visible.nonzero().T
    groups = group_windows(keep, (14, 14), window=7, shift=3)
    plan = groups.members, groups.windows, groups.positions
    T, H, d = keep.shape[1], 4, 32
    table = torch.randn(13 * 13, H)
    together = groups.windows[0, :, None] == groups.windows[0]
    index = (groups.positions[0, :, None] - groups.positions[0])[together]
    biases = len(index.unique()) * H * table.itemsize  # those of positions that occur
    for dtype in (torch.float32, torch.bfloat16):
        qkv, grad = torch.randn(_IMAGES, T, 3 * H * d).to(dtype), torch.randn(_IMAGES, T, H * d).to(dtype)
        arguments = qkv, table, *plan, H, d**-0.5
        _, logsumexp = group_attention_fwd(*arguments)
        case = {"op": "group_attention", "shape": f"B={_IMAGES} T={T} H={H} d={d}"}
        case["dtype"] = str(dtype).removeprefix("torch.")
        both = biases + sum(x.nbytes for x in (qkv, grad, logsumexp, *plan))  # either pass reads or writes these
        yield _counted(group_attention_fwd, arguments, pass_="fwd", ideal_bytes=both, **case)
        both += qkv.nbytes + table.nbytes
        yield _counted(group_attention_bwd, (grad, logsumexp, *arguments), pass_="bwd", ideal_bytes=both, **case)


def _count_losses() -> Iterator[Row]:
    from bimkern.ops._triton import masked_loss, masked_pixel_loss, pixel_targets

    weight = (torch.arange(_IMAGES * _PATCHES).view(_IMAGES, _PATCHES) % 4 != 0).float()
    masked, total, grad = int(weight.sum()), weight.sum(), torch.tensor(1.0)
    mean = std = torch.full((3,), 0.5)
    for patch, dtype in ((16, torch.float32), (16, torch.bfloat16), (14, torch.bfloat16)):
        P, side = 3 * patch**2, math.isqrt(_PATCHES) * patch
        pred, target = torch.randn(_IMAGES, _PATCHES, P).to(dtype), torch.randn(_IMAGES, _PATCHES, P)
        images = torch.zeros(_IMAGES, 3, side, side, dtype=torch.uint8)
        case = {"shape": f"B={_IMAGES} N={_PATCHES} P={P}", "dtype": str(dtype).removeprefix("torch.")}
        for op, module, truth, options in (
            ("masked_loss", masked_loss, target, (False,)),
            ("masked_pixel_loss", masked_pixel_loss, images, (mean, std, patch, True, False)),
        ):
            arguments = pred, truth, weight, total, *options
            read = masked * P * (pred.itemsize + truth.itemsize) + weight.nbytes
            yield _counted(getattr(module, op), arguments, op=op, pass_="fwd", ideal_bytes=read, **case)
            both = read + pred.nbytes
            yield _counted(
                getattr(module, f"{op}_bwd"), (grad, *arguments), op=op, pass_="bwd", ideal_bytes=both, **case
            )
        if dtype == torch.float32:
            moved, arguments = images.nbytes + target.nbytes, (images, mean, std, patch, True, dtype)
            yield _counted(
                pixel_targets.pixel_targets, arguments, op="pixel_targets", pass_="fwd", ideal_bytes=moved, **case
            )


def _counted(run: Callable[..., Any], arguments: tuple[Any, ...], **row: Any) -> Row:
    from bench.traffic.triton_accesses import recorded

    with recorded() as accesses:
        run(*arguments)
    asked = requested = 0
    blocks = defaultdict(list)
    for access in accesses:
        touched = np.unique(access.addresses // tables.SECTOR)  # no value lies across two
        asked += len(access.addresses) * access.size
        requested += len(touched)
        blocks[access.launch, access.program].append(touched)
    distinct = [np.unique(np.concatenate(touched)) for touched in blocks.values()]
    return Row(
        asked_bytes=asked,
        requested_sectors=requested,
        block_sectors=sum(map(len, distinct)),
        launch_sectors=len(np.unique(np.concatenate(distinct))),
        **row,
    )


if __name__ == "__main__":
    print(tables.written(Row, _count()), end="")
