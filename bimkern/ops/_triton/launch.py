"""How kernels are started: on the device of their tensors, and each product rounded before it is added to."""

from contextlib import nullcontext
from typing import Any

import torch
import triton


def launch(kernel: Any, programs: int, *args: Any, num_warps: int, **constants: Any) -> None:
    """Run programs of a kernel on the device of its first argument."""
    device = args[0].device
    # Fused, a constant minus its own product would not be zero.
    options = {"num_warps": num_warps, "enable_fp_fusion": False}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*args, **constants, **options)


def power_of_2(length: int, at_most: int) -> int:
    return min(triton.next_power_of_2(length), at_most)
