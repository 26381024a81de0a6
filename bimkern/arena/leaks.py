"""Which tensor leaked from its scope, and what refers to it? For debug mode: it scans every live Python object."""

import gc
import inspect
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Leak:
    """An allocation that was still live when its scope closed, against the plan."""

    scope: str
    order: int  # of the allocation in the scope, from 0
    bytes: int
    tensor: str  # dtype, shape and what refers to it

    def __str__(self) -> str:
        return f"allocation {self.order} of scope {self.scope!r} ({self.bytes} bytes) leaked: {self.tensor}"


def describe(allocations: Iterable[tuple[int, int, str, int]]) -> list[Leak]:
    """Describe allocations, each given as (address, bytes, scope, order)."""
    allocations = list(allocations)
    tensors = _tensors_at({address for address, *_ in allocations})
    return [
        Leak(scope, order, size, tensors.get(address, "not referred to from Python; an autograd graph may hold it"))
        for address, size, scope, order in allocations
    ]


def _tensors_at(addresses: set[int]) -> dict[int, str]:
    if not addresses:
        return {}
    found: dict[int, list[Tensor]] = {}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), Tensor) and candidate.layout is torch.strided:
            address = _address(candidate)
            if address in addresses:
                found.setdefault(address, []).append(candidate)
    del candidate
    return {address: "; ".join(_describe(tensor, found) for tensor in tensors) for address, tensors in found.items()}


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # it holds no values, as that of FakeTensorMode
        return 0


def _describe(tensor: Tensor, found: dict[int, list[Tensor]]) -> str:
    own = [id(tensors) for tensors in found.values()]
    names = {name for holder in gc.get_referrers(tensor) if id(holder) not in own for name in _names(holder, tensor)}
    names |= {f"{name!r} in {frame.f_code.co_name}" for frame in _frames() for name in _locals(frame, tensor)}
    text = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    return f"{text} referred to as {', '.join(sorted(names))}" if names else text


def _names(holder: Any, tensor: Tensor) -> list[str]:
    if isinstance(holder, dict):
        return [repr(name) for name, value in holder.items() if value is tensor]
    if isinstance(holder, (list, tuple)):
        return [f"an item of a {type(holder).__name__}"]
    return []


def _frames() -> Iterator[FrameType]:
    """Yield the frames of all threads, except those of this module."""
    # Never its own frame: one that a variable of itself refers to is a cycle, and from Python 3.12 on keeps its callers
    # alive with all that they hold.
    innermost = sys._current_frames() | {threading.get_ident(): sys._getframe(1)}
    frame: FrameType | None
    for frame in innermost.values():
        while frame is not None:
            if frame.f_globals.get("__name__") != __name__:
                yield frame
            frame = frame.f_back


def _locals(frame: FrameType, tensor: Tensor) -> list[str]:
    """Return the variables of a function that are the tensor."""
    in_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # other variables live in a dict, which is found as such
    if not in_function or sys.gettrace() is not None:
        return []
    variables = frame.f_locals
    names = [name for name, value in variables.items() if value is tensor]
    if sys.version_info < (3, 13):
        variables.clear()  # a copy that the frame keeps, and that would keep alive what the function deletes
    return names
