"""Which implementation serves an op on a device, and why: one table, one way to call.

An op is declared with the backend that has its kernel, per device. The reference (plain torch) serves every other
device, and those whose kernel is missing here. BIMKERN_BACKEND=reference|native|triton forces one for all ops;
host-cuda, set before bimkern is imported, runs the CUDA C++ kernels on the CPU, for tests.
"""

import functools
import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bimkern.errors import BimkernError
from bimkern.ops import _check as check
from bimkern.ops import composite
from bimkern.ops.native_library import library as native

logger = logging.getLogger("bimkern.ops")

BACKENDS = ("reference", "native", "triton", "host-cuda")
DEVICES = ("cpu", "cuda")

# The one owner of the schemas; the native library adds its kernels to them when it loads.
schemas = torch.library.Library("bimkern", "DEF")

# The Python of those ops that are made of differentiable operations.
_decomposed: dict[str, Callable[..., Any]] = {}

_kernels: dict[str, dict[str, str]] = {}  # op -> device -> backend
_host_only: set[str] = set()
# op -> itself, and how it is differentiated when nothing traces it
_eager: dict[str, tuple[torch._ops.OpOverload, type[torch.autograd.Function]]] = {}


class BackendError(BimkernError, RuntimeError):
    """BIMKERN_BACKEND asks for what is not there."""


@dataclass(frozen=True)
class Choice:
    backend: str
    reason: str
    fallback: bool = False  # the op has a kernel for this device, and it cannot be used


def declare(op: str, kernels: Mapping[str, str] | None = None, *, host_only: bool = False) -> None:
    """Enter an op in the table.

    Args:
        op: its name, also that of its schema.
        kernels: device type -> backend that has a kernel; none means that the reference serves every device.
        host_only: whether it takes tensors on the CPU alone, for networks on any device.
    """
    _kernels[op] = dict(kernels or {})
    if host_only:
        _host_only.add(op)


def compose(op: str, kernel: Callable[..., Any], *devices: str) -> None:
    """Let a function that is made of operations serve an op on devices, in capitals."""
    for device in devices:
        schemas.impl(op, kernel, device)
    composite.add(getattr(torch.ops.bimkern, op).default, kernel)


def decompose(op: str, function: Callable[..., Any]) -> None:
    """Let a function that is made of differentiable operations serve an op everywhere.

    `run` calls it as it is, unless a compiler traces: the way through the dispatcher takes longer than a small kernel.
    """
    schemas.impl(op, function, "CompositeImplicitAutograd")
    _decomposed[op] = function


def run_by_triton(*ops: str, module: str) -> None:
    """Let functions of the ops' names, in a module of bimkern.ops._triton, serve them on CUDA.

    Triton is imported when the first of them is called.
    """

    def served_by(op: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(f"bimkern.ops._triton.{module}"), op)(*args, **kwargs)

        return run

    for op in ops:
        schemas.impl(op, served_by(op), "CUDA")


@functools.cache
def _triton_missing() -> str | None:
    """Say why Triton cannot be used; None if it can."""
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError as error:
        return "triton is not installed" if error.name == "triton" else f"triton cannot be imported: {error}"
    except Exception as error:  # whatever a broken package throws
        return f"triton cannot be imported: {error}"
    return None


def choice(op: str, device: str) -> Choice:
    """Decide what serves `op` on `device`.

    Raises:
        BackendError: BIMKERN_BACKEND names a backend that is unknown, or that this op and device do not have.
    """
    if op in _host_only and device != "cpu":
        on_host = choice(op, "cpu")
        return replace(on_host, reason=f"on the host: {on_host.reason}")
    forced = os.environ.get("BIMKERN_BACKEND")
    declared = _kernels[op].get(device)
    missing = native.missing(device) if declared == "native" else _triton_missing() if declared == "triton" else None
    if forced is not None:
        return _forced_choice(op, device, forced, declared, missing)
    if declared is None:
        return Choice("reference", f"no kernel for {device} yet" if _kernels[op] else "no kernel yet")
    if missing is not None:
        return Choice("reference", missing, fallback=True)
    return Choice(declared, f"has a kernel for {device}")


def _forced_choice(op: str, device: str, forced: str, declared: str | None, missing: str | None) -> Choice:
    if forced not in BACKENDS:
        raise BackendError(f"{op}: BIMKERN_BACKEND must be one of {', '.join(BACKENDS)}, got {forced!r}")
    if forced == "reference":
        return Choice("reference", "BIMKERN_BACKEND=reference")
    if forced == "host-cuda":  # the native library of this process has the CUDA kernels in place of the CPU's
        declared = forced if device == "cpu" and _kernels[op].get("cuda") == "native" else None
        missing = native.error if native.runs_cuda_on_host else "it was set after bimkern was imported"
    if forced != declared:
        raise BackendError(f"{op}: BIMKERN_BACKEND={forced}, but there is no {forced} kernel for {device}")
    if missing is not None:
        raise BackendError(f"{op}: BIMKERN_BACKEND={forced}, but {missing}")
    return Choice(forced, f"BIMKERN_BACKEND={forced}")


def _choose(op: str, device: str) -> str:
    """Return the backend's name; say a fallback once."""
    return _chosen(op, device, os.environ.get("BIMKERN_BACKEND"))


@functools.cache
def _chosen(op: str, device: str, forced: str | None) -> str:
    chosen = choice(op, device)
    if chosen.fallback:
        logger.warning("%s runs on the reference for %s: %s", op, device, chosen.reason)
    return chosen.backend


# Under torch.compile the choice is made once, in plain Python, and traced as a constant: reading the environment and
# logging would break the graph. torch.compiler.assume_constant_result sets this mark too, but imports dynamo (1.7 s).
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def register_autograd(op: str, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
    """Register an op's gradient, as torch.library.register_autograd does.

    What that makes of it serves tracing, and converts every argument several times: on small tensors that takes longer
    than the op. `run` takes a plain autograd function of the same two functions instead. Under functorch both have
    torch.vmap alone: torch.func.grad raises in torch, which wants a setup_context of its own.
    """
    torch.library.register_autograd(f"bimkern::{op}", backward, setup_context=setup_context, lib=schemas)
    overload = getattr(torch.ops.bimkern, op).default

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = overload(*args)
        setup_context(ctx, args, output)
        return output

    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    _eager[op] = overload, type(op, (torch.autograd.Function,), functions)


def run(op: str, *args: Any, **kwargs: Any) -> Any:
    """Run an op's kernel, with its gradient where one is recorded.

    Raises:
        NotImplementedError: a forward-mode tangent, which torch's dispatcher would drop.
    """
    if op in _decomposed and not torch.compiler.is_compiling():
        return _decomposed[op](*args, **kwargs)
    if op not in _eager or torch.compiler.is_compiling():
        return getattr(torch.ops.bimkern, op)(*args, **kwargs)
    if forward_ad._current_level >= 0:
        _refuse_tangents(op, *args, *kwargs.values())
    if kwargs or torch._C._are_functorch_transforms_active():
        return getattr(torch.ops.bimkern, op)(*args, **kwargs)
    overload, function = _eager[op]
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        return function.apply(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*args)


def _refuse_tangents(op: str, *args: Any) -> None:
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args):
        raise NotImplementedError(f"{op}: forward-mode AD has no kernel; BIMKERN_BACKEND=reference has it")


def call(
    op: str, reference: Callable[..., Any], *args: Any, ids: tuple[str, Tensor, int] | None = None, **kwargs: Any
) -> Any:
    """Run `op` on the device of its first argument, a tensor, with the backend chosen for it.

    ids: (argument, keep, N), to be checked where no kernel does: on a CPU that the reference serves, and with
        BIMKERN_DEBUG=1, which waits for the device. Code under torch.compile is not checked.
    """
    backend = _choose(op, args[0].device.type)
    unchecked = backend == "reference" and args[0].is_cpu
    if ids is not None and not torch.compiler.is_compiling() and (unchecked or _is_debugging()):
        check.ids(op, *ids)
    return reference(*args, **kwargs) if backend == "reference" else run(op, *args, **kwargs)


def _is_debugging() -> bool:
    return os.environ.get("BIMKERN_DEBUG", "0") != "0"


def backends() -> dict[str, dict[str, Choice]]:
    """Return the backend of each op on each device, with the reason: {op: {device: Choice(backend, reason)}}."""
    table: dict[str, dict[str, Choice]] = {}
    for op in sorted(_kernels):
        table[op] = {}
        for device in DEVICES:
            try:
                table[op][device] = choice(op, device)
            except BackendError as error:
                table[op][device] = Choice("none", str(error))
    return table
