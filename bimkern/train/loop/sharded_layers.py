"""A network whose layers are sharded over the ranks: each has its share of them, and one layer at a time as a whole.

Layers are those of the encoder and of the heads. What lies outside of them every rank has as a whole.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, share_comm_ctx
from torch.distributed.tensor import DTensor

from bimkern.distributed.ranks import Group
from bimkern.errors import RunError
from bimkern.mim.flow import Flow
from bimkern.mim.model import Method
from bimkern.mim.pipeline import assign
from bimkern.train.checkpoint.shared import load_shared
from bimkern.train.checkpoint.store import Checkpoint
from bimkern.train.checkpoint.streamed import Streamed, read
from bimkern.train.config.run import ConfigError
from bimkern.train.loop.agreement import Agreement
from bimkern.train.loop.sharing import SharedImages
from bimkern.train.memory.budget import is_out_of_memory
from bimkern.train.network import called_layers, parts
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.run_folder.dataset_manifest import Quarantine
from bimkern.train.sharding import sharded_tensors
from bimkern.train.sharding.late_weights import LateWeights, NotLate
from bimkern.train.sharding.layer_transfers import LayerTransfers

logger = logging.getLogger("bimkern.train")

N = TypeVar("N", bound=nn.Module)


class LayerOutOfMemory(RunError, RuntimeError):
    """A rank ran out of memory while others wait for its shards; the message names a remedy."""


class SharedLayers(SharedImages):
    """Share the images of every step, and the weights, gradients and optimizer state of every layer."""

    def __init__(self, ranks: Group, device: torch.device) -> None:
        """Connect the ranks for this. Every rank has to call it at the same time."""
        super().__init__(ranks)
        self._mesh, self._transfers = ranks.mesh(device.type), LayerTransfers()
        self._plain: dict[str, nn.Module] = {}  # the layers as they were, without memory
        self._names: frozenset[str] = frozenset()  # of weights that are sharded
        self._late = LateWeights()

    # of the trainer

    def agreement(self, quarantine: Quarantine, updates: Sequence[GroupOptimizer]) -> Agreement:
        return Agreement(self.ranks, quarantine, updates, layers=self._transfers.traffic)

    def load(self, folder: Path, updates: Sequence[GroupOptimizer]) -> Checkpoint | None:
        return load_shared(folder, self.ranks, sharded=True, layers=self._names)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise LayerOutOfMemory(
                f"rank {self.ranks.rank} is out of memory in the middle of a step, where the others wait for its share "
                f"of a layer (--shard full); start again with a smaller --micro-batch"
            ) from error

    # of the task

    def flow(self, method: Method) -> Flow:
        return method.flow

    def built(self, build: Callable[[], N]) -> N:
        """Build a network whose layers are without memory until keep() draws one after the other."""
        state = torch.get_rng_state()
        try:
            with self._late:
                model = build()
            self._late.check(model)
            return model
        except (NotLate, RuntimeError, TypeError) as error:  # which torch raises where weights have no memory
            (reason, *_) = str(error).splitlines() or [type(error).__name__]
            logger.warning("--shard full: the network is built as a whole in every rank, on the host (%s)", reason)
        torch.set_rng_state(state)
        return build()

    def keep(self, model: nn.Module, device: torch.device) -> None:
        """Keep this rank's share of every layer; host and device have one whole layer at a time.

        Raises:
            ConfigError: torch cannot shard a layer.
        """
        names = {module: name for name, module in model.named_modules()}
        self._plain, seen, layers = {}, set[nn.Parameter](), list[FSDPModule]()
        for part in parts(model):
            for layer in called_layers(part):
                own = set(layer.parameters())
                if own & seen:
                    raise ConfigError(f"--shard full: layers of {type(part).__name__} have parameters in common")
                seen |= own
                if own:
                    self._plain[names[layer]] = _without_memory(layer)
                    self._late.draw(layer)
                    layer.to(device)
                    layers.append(self._sharded(layer))
        share_comm_ctx(layers)  # so that what a layer sends is freed when the next one sends, not after the last
        self._late.draw(model)  # what lies outside of layers
        self._late = LateWeights()  # which keeps nothing of this network
        model.to(device)
        self._names = frozenset(name for name, tensor in model.state_dict().items() if isinstance(tensor, DTensor))

    def _sharded(self, layer: nn.Module) -> FSDPModule:
        try:
            made: FSDPModule = fully_shard(layer, mesh=self._mesh, reshard_after_forward=True)
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(f"--shard full: torch cannot shard {type(layer).__name__} ({error})") from error
        # The losses of all ranks add up, and so do their gradients; gloo knows no other operation.
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)
        self._transfers.observe(made)
        # By default it gathers the layer that ran before it: maybe that of a stage whose update is still to come.
        made.set_modules_to_backward_prefetch([made])
        return made

    def state(self, model: nn.Module) -> dict[str, Tensor | Streamed]:
        return {name: self._streamed(name, tensor) for name, tensor in model.state_dict().items()}

    def _streamed(self, name: str, tensor: Tensor) -> Tensor | Streamed:
        if not isinstance(tensor, DTensor):
            return tensor
        return sharded_tensors.streamed(name, tensor, _local(tensor), self.ranks)

    def load_state(self, model: nn.Module, tensors: Mapping[str, Tensor | Streamed]) -> None:
        """Take over weights, of which rank 0 has all, and each of the others what is not sharded.

        Raises:
            KeyError, RuntimeError, ValueError: they are those of another network.
        """
        own: Mapping[str, Any] = model.state_dict()
        for name in sorted(self._names):
            given = read(tensors[name]) if self.ranks.rank == 0 else None
            sharded_tensors.share_out(own[name], given, _local(own[name]))
        rest = {name: read(tensor) for name, tensor in tensors.items() if name not in self._names}
        found = model.load_state_dict(rest, strict=False)
        odd = [*found.unexpected_keys, *(name for name in found.missing_keys if name not in self._names)]
        if odd:
            raise KeyError(", ".join(odd))

    def everywhere(self, model: N) -> N:
        return model

    @torch.no_grad()
    def complete(self, model: nn.Module) -> None:
        """Give the network to every rank as a whole, in layers that are not sharded any more."""
        for name, plain in self._plain.items():
            layer = model.get_submodule(name)
            for key, parameter in layer.named_parameters():
                assert isinstance(parameter, DTensor)
                assign(plain, key, sharded_tensors.whole(parameter, _local(parameter)))
            for key, buffer in layer.named_buffers():
                assign(plain, key, buffer)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, plain.train(layer.training))
        self._plain, self._names = {}, frozenset()


def _without_memory(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer whose parameters have shapes alone."""
    known: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in layer.parameters()
    }
    return copy.deepcopy(layer, known)


@torch.no_grad()
def _local(tensor: DTensor) -> Tensor:
    return tensor.to_local()
