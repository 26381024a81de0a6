"""Checks of what a caller passes to an op. Each names the op, the argument, what was expected and what came.

None of them reads a tensor's values, so none can synchronize a device, and all can be traced by torch.compile. The one
exception is `ids`, for which _backend.call knows when.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MASKS = (torch.bool, *FLOATS)

Result = TypeVar("Result")

_passed: dict[Any, Any] = {}  # what was checked -> what the check returned
_ROOM = 4096


def once(check: Callable[..., Result], tensors: tuple[Tensor | None, ...], *numbers: Any) -> Result:
    """Return check(*tensors, *numbers), remembered per shapes, dtypes and devices, and per numbers and their types.

    An op is called with few of them, and often: the checks would take as long as a small kernel.
    """
    if torch.compiler.is_compiling():
        return check(*tensors, *numbers)
    signature = [None if x is None else (x.shape, x.dtype, x.device, x.requires_grad) for x in tensors]
    key = (check, *signature, *numbers, *map(type, numbers))  # types too, as 1 == 1.0 == True
    try:
        if key in _passed:
            return _passed[key]
    except TypeError:  # sizes that are symbols have no hash
        return check(*tensors, *numbers)
    result = check(*tensors, *numbers)
    if len(_passed) >= _ROOM:
        _passed.clear()
    _passed[key] = result
    return result


def shapes(op: str, known: Mapping[str, int] | None = None, /, **tensors: tuple[Tensor | None, str]) -> dict[str, int]:
    """Match tensors against shape letters and return the size of every letter.

    Args:
        op: name for the message.
        known: letters whose size is given from elsewhere, such as {"R": num_prefix}.
        tensors: argument name -> (tensor, dims). Dims are parted by spaces, each a letter ("B"), a number ("3") or a
            sum of these with at most one letter still unknown ("R+N"). A letter gets its size where it comes first;
            a tensor that is None is passed over.

    Raises:
        ValueError: `gather_tokens: pos must be [N=196, D=384], got [195, 384]`
    """
    sizes = dict(known or {})
    for name, (tensor, spec) in tensors.items():
        if tensor is None:
            continue
        dims, shape = _parsed(spec), tensor.shape
        found = dict(sizes)
        if len(dims) != len(shape) or not all(_match(dim, size, found) for dim, size in zip(dims, shape, strict=True)):
            expected = ", ".join(_describe(dim, sizes) for dim in spec.split())
            raise ValueError(f"{op}: {name} must be [{expected}], got {list(tensor.shape)}")
        sizes = found
    return sizes


def _parsed(spec: str) -> tuple[tuple[int | str, ...], ...]:
    """Return the terms of every dimension, numbers as such."""
    return tuple(tuple(int(t) if t.isdigit() else t for t in dim.split("+")) for dim in spec.split())


def _match(dim: tuple[int | str, ...], size: int, sizes: dict[str, int]) -> bool:
    """Compare one dimension, or learn from it the one letter that is unknown."""
    rest = size
    unknown = None
    for term in dim:
        if isinstance(term, int):
            rest = rest - term
        elif term in sizes:
            rest = rest - sizes[term]
        else:
            unknown = term
    if unknown is None:
        return rest == 0
    sizes[unknown] = rest
    return rest >= 0


def _describe(dim: str, sizes: Mapping[str, int]) -> str:
    terms = dim.split("+")
    if any(not term.isdigit() and term not in sizes for term in terms):
        return "+".join(f"{term}={sizes[term]}" if term in sizes else term for term in terms)
    total = sum(int(term) if term.isdigit() else sizes[term] for term in terms)
    return dim if dim.isdigit() else f"{dim}={total}"


def dtypes(op: str, **tensors: tuple[Tensor | None, torch.dtype | tuple[torch.dtype, ...]]) -> None:
    """Compare the dtype of each tensor with the one, or the several, that are allowed.

    Raises:
        TypeError: `gather_tokens: keep must be int64, got int32`
    """
    for name, (tensor, allowed) in tensors.items():
        if tensor is None:
            continue
        choices = allowed if isinstance(allowed, tuple) else (allowed,)
        if tensor.dtype not in choices:
            names = [_name(dtype) for dtype in choices]
            expected = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            raise TypeError(f"{op}: {name} must be {expected}, got {_name(tensor.dtype)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def same_device(op: str, **tensors: Tensor | None) -> None:
    """Hold all tensors to the device of the first.

    Raises:
        ValueError: `gather_tokens: pos must be on cuda:0 like tokens, got cpu`
    """
    present = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(present))
    for name, device in present.items():
        if device != present[first]:
            raise ValueError(f"{op}: {name} must be on {present[first]} like {first}, got {device}")


def ids(op: str, name: str, keep: Tensor, num_tokens: int) -> None:
    """Hold the ids in keep [B, K] to what the kernels take, as they do themselves on a CPU.

    Raises:
        RuntimeError: `gather_tokens: keep must hold ids in [0, N=4), got 4 in image 1`
    """
    # A subclass may hold no values, as that of FakeTensorMode; under vmap none are of one call.
    if type(keep) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(keep):
        return
    beyond = (keep < 0) | (keep >= num_tokens)
    ordered, positions = keep.sort(dim=1, stable=True)
    again = torch.zeros_like(beyond).scatter(1, positions[:, 1:], ordered[:, 1:] == ordered[:, :-1])
    wrong = beyond | again
    if not wrong.any():
        return
    image, position = wrong.nonzero()[0].tolist()
    got = int(keep[image, position])
    if not 0 <= got < num_tokens:
        raise RuntimeError(f"{op}: {name} must hold ids in [0, N={num_tokens}), got {got} in image {image}")
    raise RuntimeError(f"{op}: {name} must not repeat an id within an image, got {got} twice in image {image}")
