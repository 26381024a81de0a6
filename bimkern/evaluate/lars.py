"""LARS, the optimizer of linear probes."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


class LARS(Optimizer):
    """SGD with momentum, whose steps of a matrix are scaled to its norm; vectors get neither that nor decay.

    For a matrix p with gradient g: g += decay p; g *= trust |p| / |g|, or 1 where a norm is 0. Then v = momentum v + g
    and p -= lr v.

    Source: You et al. 2017 "Large Batch Training of Convolutional Networks"; as in He et al. 2022 (MAE), table 10.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.9,
        trust: float = 0.001,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        step = parameter.grad
        if parameter.dim() > 1:
            step = step.add(parameter, alpha=group["weight_decay"])
            size, length = parameter.norm(), step.norm()
            scaled = (size > 0) & (length > 0)
            step = step * torch.where(scaled, group["trust"] * size / length, 1.0)
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        velocity = state["momentum"].mul_(group["momentum"]).add_(step)
        parameter.add_(velocity, alpha=-group["lr"])
