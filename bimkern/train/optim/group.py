"""The update of one group of parameters, with its own optimizer, loss scaler and gradient clipping.

With several ranks, an update is begun when the gradients are there, and finished when their sums are.

A flow cuts the parameters into groups: one for every stage, or one for all. Each group updates on its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bimkern.distributed.ranks import ALONE, Ranks
from bimkern.distributed.transfers import Traffic
from bimkern.mim.schedule import LayerGroup
from bimkern.train.checkpoint.streamed import Streamed
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.adapters import QUANTITIES, MakeOptimizer, adamw
from bimkern.train.optim.gradients import BucketedReducer, GradientReducer, OwnGradients
from bimkern.train.sharding.share import EqualShare, Share, WholeShare, is_sharded


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
        sharded: bool = False,
    ) -> None:
        """Take the named parameters; those of different layer groups, where given, may learn at different rates.

        Where it is sharded, every rank updates, and has the optimizer's state of, a share of them. Those that torch has
        sharded before are among them.
        """
        self.name = name
        self.is_sharded = sharded and ranks.size > 1
        given = [parameter for _, parameter in parameters]
        self._share: Share = _share_of(given, ranks) if self.is_sharded else WholeShare(given)
        self._names: dict[nn.Parameter, str] = {parameter: name for name, parameter in parameters}
        self._clip = config.clip
        groups: dict[tuple[LayerGroup, bool], dict[str, Any]] = {}
        for full_name, parameter in parameters:
            group = (layer_groups or {}).get(full_name, LayerGroup(0))
            decays = config.decays(full_name, parameter)
            weight_decay = config.weight_decay if decays else 0.0
            fresh = {"params": [], "weight_decay": weight_decay, "layer_group": group}
            part = self._share.part(parameter)
            groups.setdefault((group, decays), fresh)["params"] += [] if part is None else [part]
        self._optimizer = make([groups[key] for key in sorted(groups)], config)
        self._scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        # What the scaler knows of an optimizer: here all gradients, whatever part of them this rank updates with.
        self._unscaled: Any = SimpleNamespace(param_groups=[{"params": self._share.learned()}])
        others = [parameter for parameter in given if not is_sharded(parameter)]
        alone = ranks.size == 1 or not others
        self._summed: GradientReducer = OwnGradients() if alone else BucketedReducer(others, ranks)
        self._due = self._begun = False  # in a step whose update is to come; an update that is to be finished
        self._renewed = False  # gradients of other parameters are expected from the next sums on
        self._rates = [0.0] * len(self._optimizer.inner.param_groups)
        self.skipped = torch.zeros((), device=device)  # updates, so far
        self.skipped_in_a_row = torch.zeros((), device=device)

    def set_rates(self, rate: Callable[[LayerGroup], float]) -> None:
        """Set the learning rate of every layer group, for the next update to begin."""
        self._rates = [rate(group["layer_group"]) for group in self._optimizer.inner.param_groups]
        self._due = True
        if not self._begun:
            self._take_rates()
        if not any(self._rates):
            self.skipped_in_a_row.zero_()  # nothing is left that could fail to learn

    def scale(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def renew(self) -> None:
        """Expect, from this step on, gradients of other parameters than before; what is begun is finished as it was.

        It cannot fail: a rank that runs out of memory later in the step gives up in the order in which others continue.
        """
        self._renewed = True

    def ahead(self) -> None:
        """Let gradients be summed over ranks as they come, in the backward pass that follows: it is the last."""
        self._summed.ahead()

    def give_up_update(self) -> None:
        """Take part in what other ranks exchange in an update that this rank cannot make."""
        if self._due and self._begun:
            self._finish_sums()
            self._share.send()

    def give_up(self) -> None:
        """Take part in what other ranks exchange in a step that this one cannot finish: nothing is of use after it."""
        if self._due:
            self.give_up_update()
            self._share.receive()
            self._expect_others()
            self._summed.give_up()

    def traffic(self) -> Traffic:
        """Return the time that sums over ranks, and what followed them, took since this was last called."""
        return self._summed.traffic() + self._share.traffic()

    def apply(self) -> None:
        """Begin the update, and free the gradients; one process alone finishes it at once."""
        self._due, self._begun = False, True
        if not self._summed.begin():
            self.finish()

    def prepare(self) -> None:
        """Make an update ahead of finish() where it is sharded: what others have updated is then on its way."""
        if self.is_sharded:
            self._update()

    def finish(self) -> None:
        """Finish an update that is begun, before the parameters are read: clip, and update unless it is not finite."""
        self._update()
        self._share.receive()

    def _update(self) -> None:
        if not self._begun:
            self._expect_others()
            return
        self._finish_sums()
        try:
            self._update_part()
        finally:  # other ranks wait for it even where memory runs out
            self._share.send()
        for parameter in self._names:
            parameter.grad = None
        self._take_rates()

    def _finish_sums(self) -> None:
        self._begun = False
        self._summed.finish()
        self._expect_others()

    def _expect_others(self) -> None:
        """Forget which parameters have gradients, once the sums that are begun are finished."""
        if self._renewed:
            self._renewed = False
            self._summed.renew()

    def _update_part(self) -> None:
        self._share.take_gradients()
        self._scaler.unscale_(self._unscaled)
        norm = self._share.norm()
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(self._share.learned(), self._clip, norm)
        skip = (~norm.isfinite()).float()
        self.skipped += skip
        self.skipped_in_a_row.add_(skip).mul_(skip)  # in place: nothing that a step allocates outlives it
        self._optimizer.step(skip)
        self._scaler.update()

    def _take_rates(self) -> None:
        for group, rate in zip(self._optimizer.inner.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def tensors(self) -> Iterator[tuple[str, Tensor | Streamed]]:
        """Yield the optimizer's state: `<parameter>/<quantity>` and its tensor."""
        state = dict(self._optimizer.state())
        for parameter, name in self._names.items():
            part = self._share.part(parameter)
            own = {} if part is None else state.get(part, {})
            for quantity in QUANTITIES:
                stored = self._share.stored(f"{name}/{quantity}", parameter, quantity, own.get(quantity))
                if stored is not None:
                    yield f"{name}/{quantity}", stored

    def load_tensors(self, tensors: Mapping[str, Tensor | Streamed]) -> None:
        """Take over the state that tensors() gave, from a mapping that may hold that of other groups too.

        A parameter that had no gradient yet, such as one that is frozen from the first step on, has none. Where it is
        sharded, rank 0 alone needs the mapping.

        Raises:
            KeyError: a parameter has some of its state only.
        """
        state: dict[Tensor, dict[str, Tensor]] = {}
        for parameter, name in self._names.items():
            part = self._share.part(parameter)
            found = {
                quantity: self._share.loaded(f"{name}/{quantity}", parameter, quantity, tensors)
                for quantity in QUANTITIES
            }
            known = {quantity: own for quantity, own in found.items() if own is not None}
            if part is not None and known:
                if len(known) < len(QUANTITIES):
                    raise KeyError(", ".join(f"{name}/{quantity}" for quantity in found.keys() - known.keys()))
                state[part] = known
        self._optimizer.load_state(state)

    def scaler_state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)


def give_up(updates: Sequence[GroupOptimizer]) -> None:
    """Take part, in their order, in what other ranks exchange in a step that this one cannot finish."""
    for update, behind in zip(updates, [*updates[1:], None], strict=True):
        update.give_up_update()
        if behind is not None and behind.is_sharded:
            behind.give_up_update()  # which they make ahead
        update.give_up()


def _share_of(parameters: list[nn.Parameter], ranks: Ranks) -> Share:
    """Return a share of a group's parameters; those that torch shards stay as they are."""
    layers = [parameter for parameter in parameters if is_sharded(parameter)]
    others = [parameter for parameter in parameters if not is_sharded(parameter)]
    rest: Share = EqualShare(others, ranks) if others else WholeShare([])
    if not layers:
        return rest
    from bimkern.train.sharding.layer_share import LayerShare  # which takes seconds

    return LayerShare(layers, rest, ranks)
