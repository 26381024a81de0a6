"""Compare a host's method with its replacement before anything is replaced.

Copies of one program differ in ways that attributes do not show: another loss, an input more, layers called otherwise.
So both methods are called on a twin of the module with random parameters, where stand-ins replace the layers that take
time, and must agree in results, gradients and random numbers drawn.
"""

import contextlib
import functools
import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bimkern.dropin import layers
from bimkern.dropin.structure import Host, Part

_SMALL = 2**18  # elements of what a gradient is compared of: a weight matrix takes time and shows no more
_PERIOD = 8191  # a prime: no patch or row repeats another
_TOLERANCE = 1e-4  # of the largest value; another formula is off by far more
_HALF_TOLERANCE = 3e-2
_MODES = (True, False)  # of training
_CHECKPOINT = "torch.utils.checkpoint"


class Affine(nn.Module):
    """A layer's stand-in: cheap, and no two alike, so order and number of calls show in the result."""

    def __init__(self, factor: float, offset: float = 0.125) -> None:
        super().__init__()
        self.factor = factor
        self.offset = torch.tensor(offset, device="cpu")  # a scalar suits every device

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift, in one op."""
        return torch.add(self.offset, x, alpha=self.factor)


class Mixing(Affine):
    """A transformer layer's stand-in: every token shows in all others, and so in a loss of some."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift tokens [B, T, D], and add a mean of all in which each weighs another."""
        weights = torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype, device=x.device)[:, None]  # [T, 1]
        return super().forward(x) + (x * weights).mean(1, keepdim=True)


class Returns(nn.Module):
    """A network's stand-in: returns a tensor, of which gradients are compared, whatever it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Return the tensor."""
        return self.value


def stand_ins() -> nn.ModuleList:
    """Return two stand-ins in place of a list of transformer layers."""
    return nn.ModuleList([Affine(1.5), Mixing(-0.75, 0.5)])


def twin(module: nn.Module, **changes: Any) -> nn.Module:
    """Copy a module without what it holds: random parameters of its own, and the same attributes and children.

    Args:
        module: it stays as it is.
        changes: attribute -> what it is in the copy: a child, the shape of a parameter or buffer, or any other value.
    """
    cls = type(module)
    copy: nn.Module = cls.__new__(cls)
    parameters, buffers = module._parameters.copy(), module._buffers.copy()
    for name, parameter in parameters.items():
        shape = changes.pop(name, None)
        if parameter is not None:
            values = sample(parameter, *(shape or parameter.shape))
            parameters[name] = nn.Parameter(values, parameter.requires_grad)
    for name, buffer in buffers.items():
        shape = changes.pop(name, None)
        if buffer is not None and shape is not None:
            buffers[name] = sample(buffer, *shape)
    children = {name: value for name, value in changes.items() if isinstance(value, nn.Module)}
    tensors = {"_parameters": parameters, "_buffers": buffers, "_modules": module._modules | children}
    others = {name: value for name, value in changes.items() if name not in children}
    others["_compiled_call_impl"] = None  # of nn.Module.compile, which would call the module itself
    vars(copy).update(vars(module) | others | tensors)
    return copy


def sample(like: Tensor, *shape: int) -> Tensor:
    """Return random values in [-1, 1), repeated from some on to save time, as another tensor's dtype and device are."""
    count = math.prod(shape)
    period = min(count, _PERIOD)
    values = torch.empty(period, device=like.device, dtype=torch.float32).uniform_(-1, 1).to(like.dtype)
    if count > period:
        values = values.repeat(-(-count // period))[:count]
    return values.view(shape)


def forms(host: Host, module: nn.Module) -> tuple[nn.Module, ...]:
    """Return in which forms a module is tried: the cheap one that its host knows, if it has that, and as it is."""
    try:
        return tuple(dict.fromkeys((host.smaller(module), module)))
    except Exception:  # whatever the module lacks, it needs none of it to be tried as it is
        return (module,)


def difference(
    host_class: type[nn.Module],
    ours: Callable[[], type[nn.Module]],
    part: Part,
    module: nn.Module,
    forms: Iterable[nn.Module],
) -> str | None:
    """Return why a method of the host must stay, or None where its replacement does the same in one of the forms.

    Random numbers are drawn: call it in `isolated`. ours makes the class with the replacement, or raises anything.
    """
    theirs = getattr(host_class, part.method, None)
    if theirs is None:
        return f"has no method {part.method}"
    if part.method in vars(module):
        return f"{part.method} is replaced on this instance already"
    written = inspect.unwrap(theirs)
    if _parameters(written) != _parameters(part.ours):
        return f"takes {_shown(_parameters(written))} instead of {_shown(_parameters(part.ours))}"
    if _recomputes(written):
        return "recomputes activations (checkpoint), which the replacement would not"
    found: str | None = None
    for form in forms:
        found = _compare(host_class, ours, part, form)
        if found is None:
            return None
    return found


def _recomputes(written: Any) -> bool:
    """Return whether a function, or one inside it, refers to a checkpoint by this name, or to torch's by another."""
    known = getattr(written, "__globals__", {})
    return any("checkpoint" in name or _is_of_torchs_checkpoint(known.get(name)) for name in _names(written))


def _is_of_torchs_checkpoint(value: Any) -> bool:
    return _CHECKPOINT in (getattr(value, "__module__", None), getattr(value, "__name__", None))


def _sets_autocast(method: Any) -> bool:
    """Return whether a method, or what decorates it, names torch's autocast."""
    return any("autocast" in name for name in _names(method)) or (
        hasattr(method, "__wrapped__") and _sets_autocast(method.__wrapped__)
    )


def _names(function: Any) -> Iterator[str]:
    """Yield what a function, and those inside it, refer to."""
    code = getattr(function, "__code__", None)
    return iter(()) if code is None else _names_in(code)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for inner in filter(inspect.iscode, code.co_consts):
        yield from _names_in(inner)


def _compare(
    host_class: type[nn.Module], ours: Callable[[], type[nn.Module]], part: Part, form: nn.Module
) -> str | None:
    try:
        trial = part.trial(form)
        subject = twin(form, **trial.children)
        subject.__class__ = host_class
        candidates = (*subject.parameters(), *_tensors(trial.args))
        leaves = [x for x in candidates if x.requires_grad and x.numel() <= _SMALL]
        host_method = getattr(host_class, part.method)
        halves = (False, True) if _sets_autocast(host_method) else (False,)
        expected = [_call(subject, host_method, trial.args, leaves, *mode) for mode in product(halves, _MODES)]
    except Exception as error:
        return f"could not be tried: {type(error).__name__}: {_first_line(error)}"
    in_half = any(map(_is_half, _tensors(trial.args)))  # results of it may be wider, but are no more exact
    try:
        subject.__class__ = ours()
        modes = _MODES if part.reads_training else (True, None)  # None: as in the mode before
        got: list[dict[str, Any]] = []
        for half, training in product(halves, modes):
            got.append(got[-1] if training is None else _call(subject, part.ours, trial.args, leaves, half, training))
    except Exception as error:
        return f"cannot be replaced: {type(error).__name__}: {_first_line(error)}"
    for (half, _), theirs, replaced in zip(product(halves, _MODES), expected, got, strict=True):
        if theirs["random numbers"] != replaced["random numbers"]:
            return "draws other random numbers"
        for what in ("results", "gradients"):
            if what in theirs and not _equal(theirs[what], replaced[what], in_half):
                return f"computes other {what} than its replacement{' under autocast' if half else ''}"
    return None


def _call(
    subject: nn.Module,
    method: Callable[..., Any],
    args: tuple[Any, ...],
    leaves: list[Tensor],
    half: bool,
    training: bool,
) -> dict[str, Any]:
    """Call a method from the same random state each time, and in training take gradients of what it returns.

    half: under autocast to bfloat16.
    """
    subject.training = training
    generators = _generators(subject)
    for generator in generators:
        generator.manual_seed(0)
    with torch.autocast(_device(subject).type, torch.bfloat16, enabled=half):
        returned = method(subject, *args)
    drawn = [generator.get_state().numpy().tobytes() for generator in generators]
    results = list(_tensors(returned))
    outcome = {"results": [type(returned), *results], "random numbers": drawn}
    if training:  # gradients are the same out of it
        roots = [x for x in results if x.requires_grad]
        # Each element weighs another, so that a permutation shows. Weights given to grad() would import sympy.
        totals = [(x * sample(x, *x.shape)).sum() for x in roots]
        can = totals and leaves
        outcome["gradients"] = torch.autograd.grad(totals, leaves, allow_unused=True) if can else ()
    return outcome


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _is_half(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype.itemsize < 4


def _equal(expected: Any, got: Any, in_half: bool) -> bool:
    return len(expected) == len(got) and all(
        _same(theirs, ours, in_half) for theirs, ours in zip(expected, got, strict=True)
    )


def _same(expected: Any, got: Any, in_half: bool) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return expected is got
    if (expected.shape, expected.dtype, expected.requires_grad) != (got.shape, got.dtype, got.requires_grad):
        return False
    if not expected.is_floating_point() or not expected.numel():
        return torch.equal(expected, got)
    tolerance = _HALF_TOLERANCE if in_half or _is_half(expected) else _TOLERANCE
    error, largest = torch.dist(expected, got, math.inf), torch.linalg.vector_norm(expected, math.inf)
    return error.item() <= tolerance * largest.item()  # False for NaN


def _generators(subject: nn.Module) -> list[torch.Generator]:
    """Return those of the CPU, and of a GPU where the subject is on one, or tensors are that are made now."""
    for device in (_device(subject), torch.get_default_device()):
        if device.type == "cuda":
            return [torch.default_generator, torch.cuda.default_generators[device.index or 0]]
    return [torch.default_generator]


def _device(subject: nn.Module) -> torch.device:
    return next((p.device for p in subject.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def isolated(module: nn.Module) -> Iterator[None]:
    """Leave the caller's random numbers, modes of torch and the module's buffers as they are, and call no hooks."""
    generators = _generators(module)
    buffers = [(x, x.clone()) for x in module.buffers()]  # a BatchNorm updates its own, and no version tells
    hooks = [(registered, registered.copy()) for registered in layers.hooks_of(module)]
    states = [generator.get_state() for generator in generators]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  hosts draw from it
    device = _device(module).type
    try:
        for registered, _ in hooks:
            registered.clear()
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for registered, before in hooks:
            registered.update(before)
        for buffer, values in buffers:
            if not torch.equal(buffer, values):
                buffer.copy_(values)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@functools.cache
def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    parameters = list(inspect.signature(function).parameters.values())
    return [(p.name, p.kind) for p in parameters[1:]]  # all but self; defaults are the host's (swap.py)


def _shown(parameters: list[tuple[str, Any]]) -> str:
    return f"({', '.join(name for name, _ in parameters)})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
