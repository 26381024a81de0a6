"""The update of one group of parameters, with its own optimizer, loss scaler and gradient clipping.

With several ranks, an update is begun when the gradients are there, and finished when their sums are.

A flow cuts the parameters into groups: one for every stage, or one for all. Each group updates on its own.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.distributed import ALONE, Ranks
from bimkern.mim.schedule import LayerGroup
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.adapters import MakeOptimizer, adamw
from bimkern.train.optim.gradients import BucketedSum, GradientSum, OwnGradients


class GroupOptimizer:
    """Update one group of parameters; the loss is scaled for fp16 only.

    An update whose gradient is not finite is skipped, in every precision, and counted on the device. Nothing waits for
    the device, unless the optimizer has to be told on the host what to skip.
    """

    def __init__(
        self,
        name: str,
        parameters: list[tuple[str, nn.Parameter]],
        config: AdamWConfig,
        *,
        device: torch.device,
        fp16: bool,
        make: MakeOptimizer = adamw,
        layer_groups: Mapping[str, LayerGroup] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Take the named parameters; those of different layer groups, where given, may learn at different rates."""
        self.name = name
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in parameters}
        self._clip = config.clip
        groups: dict[tuple[LayerGroup, bool], dict[str, Any]] = {}
        for full_name, parameter in parameters:
            group = (layer_groups or {}).get(full_name, LayerGroup(0))
            decays = config.decays(full_name, parameter)
            weight_decay = config.weight_decay if decays else 0.0
            fresh = {"params": [], "weight_decay": weight_decay, "layer_group": group}
            groups.setdefault((group, decays), fresh)["params"].append(parameter)
        self._optimizer = make([groups[key] for key in sorted(groups)], config)
        self._scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        summed: GradientSum = OwnGradients() if ranks.size == 1 else BucketedSum([p for _, p in parameters], ranks)
        self._summed, self._begun = summed, False
        self._rates = [0.0] * len(self._optimizer.inner.param_groups)
        self.skipped = torch.zeros((), device=device)  # updates, so far
        self.skipped_in_a_row = torch.zeros((), device=device)

    def set_rates(self, rate: Callable[[LayerGroup], float]) -> None:
        """Set the learning rate of every layer group, for the next update to begin."""
        self._rates = [rate(group["layer_group"]) for group in self._optimizer.inner.param_groups]
        if not self._begun:
            self._take_rates()
        if not any(self._rates):
            self.skipped_in_a_row.zero_()  # nothing is left that could fail to learn

    def scale(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def apply(self) -> None:
        """Begin the update, and free the gradients; one process alone finishes it at once."""
        self._begun = True
        if not self._summed.begin():
            self.finish()

    def finish(self) -> None:
        """Finish an update that is begun, before the parameters are read: clip, and update unless it is not finite."""
        if not self._begun:
            return
        self._begun = False
        self._summed.finish()
        self._scaler.unscale_(self._optimizer.inner)
        norm = nn.utils.get_total_norm([p.grad for p in self._names if p.grad is not None])
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(self._names, self._clip, norm)
        skip = (~norm.isfinite()).float()
        self.skipped += skip
        self.skipped_in_a_row.add_(skip).mul_(skip)  # in place: nothing that a step allocates outlives it
        self._optimizer.step(skip)
        self._scaler.update()
        for parameter in self._names:
            parameter.grad = None
        self._take_rates()

    def _take_rates(self) -> None:
        for group, rate in zip(self._optimizer.inner.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's state: `<parameter>/<quantity>` and its tensor."""
        for parameter, state in self._optimizer.state():
            for quantity, value in state.items():
                yield f"{self._names[parameter]}/{quantity}", value

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over the state that tensors() gave, from a mapping that may hold that of other groups too."""
        self._optimizer.load_state(
            {
                parameter: {
                    quantity: tensors[f"{name}/{quantity}"].to(parameter.device)
                    for quantity in ("step", "exp_avg", "exp_avg_sq")
                }
                for parameter, name in self._names.items()
            }
        )

    def scaler_state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)
