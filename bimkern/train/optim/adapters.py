"""Optimizers by name: torch's fused AdamW, or FusedAdam and FusedLAMB of NVIDIA's apex, behind one interface.

The adapters for apex follow its documented interface and have not been run with the package itself.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from bimkern import optional
from bimkern.train.config.optimizer import AdamWConfig, OptimizerName

QUANTITIES = ("step", "exp_avg", "exp_avg_sq")
Quantities = dict[str, Tensor]  # the state of one parameter, by these names

NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)
_REMEDY = "NVIDIA's apex is built from https://github.com/NVIDIA/apex (PyPI's is another package); or choose adamw"


class Optimizer(Protocol):
    """An optimizer that can skip an update, and whose state can be saved and loaded."""

    @property
    def inner(self) -> torch.optim.Optimizer: ...

    def step(self, skip: Tensor) -> None:
        """Update, or leave everything as it is where skip is 1."""

    def state(self) -> Iterator[tuple[Tensor, Quantities]]:
        """Yield every parameter and its state."""

    def load_state(self, state: dict[Tensor, Quantities]) -> None:
        """Take over the state of every parameter; those that are left out have none yet."""


@dataclass(frozen=True)
class _SkipsOnDevice:
    """A fused optimizer of torch's: the device itself leaves everything as it is, so nothing waits."""

    inner: torch.optim.Optimizer

    def step(self, skip: Tensor) -> None:
        self.inner.found_inf = skip  # type: ignore[attr-defined]
        self.inner.step()
        del self.inner.found_inf  # type: ignore[attr-defined]

    def state(self) -> Iterator[tuple[Tensor, Quantities]]:
        yield from self.inner.state.items()

    def load_state(self, state: dict[Tensor, Quantities]) -> None:
        self.inner.state.clear()
        self.inner.state.update(state)


@dataclass(frozen=True)
class _SkipsOnHost:
    """An optimizer of apex's: it cannot skip, so every update waits for the device. It counts steps by the group."""

    inner: torch.optim.Optimizer

    def __post_init__(self) -> None:
        # apex would do this in the first update, and a run that has skipped all of its updates is saved as well.
        for group in self.inner.param_groups:
            group["step"] = 0
            for p in group["params"]:
                self.inner.state[p] = _no_moments(p)

    def step(self, skip: Tensor) -> None:
        if not skip:
            self.inner.step()

    def state(self) -> Iterator[tuple[Tensor, Quantities]]:
        for group in self.inner.param_groups:
            for p in group["params"]:
                yield p, {"step": torch.tensor(group["step"]), **self.inner.state[p]}

    def load_state(self, state: dict[Tensor, Quantities]) -> None:
        for group in self.inner.param_groups:
            group["step"] = 0
            for p in group["params"]:
                known = dict(state.get(p, {}))
                group["step"] = max(group["step"], int(known.pop("step", 0)))
                self.inner.state[p] = _no_moments(p) | known


def _no_moments(parameter: Tensor) -> Quantities:
    return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


ParameterGroups = list[dict[str, Any]]  # params, weight_decay and what the caller adds
MakeOptimizer = Callable[[ParameterGroups, AdamWConfig], Optimizer]


def adamw(groups: ParameterGroups, config: AdamWConfig) -> Optimizer:
    return _SkipsOnDevice(torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=1e-8, fused=True))


def apex_adam(groups: ParameterGroups, config: AdamWConfig) -> Optimizer:
    made = _apex().FusedAdam(groups, lr=0.0, betas=config.betas, eps=1e-8, adam_w_mode=True)
    return _SkipsOnHost(made)


def apex_lamb(groups: ParameterGroups, config: AdamWConfig) -> Optimizer:
    """Scale every decayed parameter's AdamW step by its own norm.

    Source: You et al. 2020 (LAMB), algorithm 2; eps is the paper's.
    """
    # It clips by the norm of all gradients by default; config.clip is the only clipping here.
    made = _apex().FusedLAMB(groups, lr=0.0, betas=config.betas, eps=1e-6, adam_w_mode=True, max_grad_norm=math.inf)
    return _SkipsOnHost(made)


_APEX: dict[OptimizerName, MakeOptimizer] = {"apex_adam": apex_adam, "apex_lamb": apex_lamb}


def _apex() -> Any:
    module = optional.load("apex")
    reason = not_nvidias(module)
    if reason is not None:
        raise optional.Unusable(reason)
    return module.optimizers


def not_nvidias(module: ModuleType) -> str | None:
    """Tell NVIDIA's apex from the package of that name on PyPI; return None for NVIDIA's."""
    optimizers = getattr(module, "optimizers", None)
    if hasattr(optimizers, "FusedAdam") and hasattr(optimizers, "FusedLAMB"):
        return None
    return "a package of this name is installed, but it is not NVIDIA's"


def unusable(name: OptimizerName, device: torch.device) -> str | None:
    """Return why the optimizer of this name cannot be used on device, None where it can; for apex's, import apex."""
    if name not in _APEX:
        return None
    try:
        _try(_APEX[name], device)
    except optional.Unusable as reason:
        return str(reason)
    return None


def choose(name: OptimizerName, device: torch.device) -> MakeOptimizer:
    """Return the constructor of the optimizer that --optimizer names.

    Raises:
        Unusable: it does not run on device; the message gives the reason and the remedy.
    """
    reason = unusable(name, device)
    if reason is not None:
        raise optional.Unusable(f"--optimizer {name}: {reason}; {_REMEDY}")
    return _APEX.get(name, adamw)


def _try(make: MakeOptimizer, device: torch.device) -> None:
    """Update one number: apex can be imported without the kernels that it needs."""
    parameter = nn.Parameter(torch.ones(1, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        make([{"params": [parameter], "weight_decay": 0.0}], AdamWConfig()).step(torch.zeros((), device=device))
    except optional.Unusable:
        raise
    except Exception as error:
        raise optional.Unusable(f"does not run on {device} ({optional.first_line(error)})") from error
