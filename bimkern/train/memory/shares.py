"""Ranks that share the images of every step, and more where they shard: memory of each, and bytes on the wire."""

from dataclasses import dataclass, replace
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.data.step_layout import Segment
from bimkern.distributed.transfers import BUCKET_BYTES
from bimkern.train import network
from bimkern.train.config.passes import check_passes
from bimkern.train.config.run import Config, ConfigError, TrainingConfig
from bimkern.train.memory.budget import MemoryEstimator
from bimkern.train.memory.estimate import STATES, MemoryEstimate, without_values
from bimkern.train.memory.ranks import RankEstimate

# Copies of a layer at a time, at most: its weights, its gradients, and these in the order in which they are sent.
_LAYER_COPIES = 3
_FEWEST_LAYER_COPIES = 1  # its weights


@dataclass(frozen=True)
class _Trained:
    """Bytes of the weights that are trained."""

    groups: tuple[int, ...]  # of every update, without layers that are sharded
    encoder: int  # its layers that are sharded
    heads: int  # likewise
    largest: int  # layer that is sharded

    @property
    def rest(self) -> int:
        return sum(self.groups)

    @property
    def layers(self) -> int:
        return self.encoder + self.heads

    def buffers(self, layer_copies: int) -> int:
        """Return what a rank sums gradients in, and gathers layers in."""
        return self.rest + layer_copies * self.largest


def of_images(config: Config, segment: Segment, estimator: MemoryEstimator, num_ranks: int) -> list[RankEstimate]:
    """Estimate ranks that share the images of every step: the one with most of them, as all others need no more.

    Raises:
        ConfigError: there are fewer images, or ranks that shard layers would gather them unequally often.
    """
    if num_ranks > segment.batch_size:
        raise ConfigError(
            f"--ranks {num_ranks}: steps of {segment.batch_size} images cannot be shared by so many; choose fewer"
        )
    shard = config.run.shard
    if shard == "full":
        check_passes(config, num_ranks)
    largest = replace(segment, batch_size=-(-segment.batch_size // num_ranks))
    largest = replace(largest, micro_batch=min(segment.micro_batch, largest.batch_size))
    memory = estimator.estimate(config, largest)
    trained = _trained(config)
    others = (num_ranks - 1) / num_ranks  # the share of a sum or a copy that a rank sends, in a ring
    sent = 2 * others * trained.rest  # sums: they are reduced, and then gathered
    learns_alone = len(trained.groups) > 1  # an update may then wait until the next step needs it
    exposed = 0.0 if learns_alone else 2 * others * min(BUCKET_BYTES, trained.rest)  # the last bucket of backward
    if shard != "none":
        memory = _sharded(memory, trained, num_ranks)
        sent += others * trained.rest  # what each rank has updated
        exposed += others * trained.groups[0]  # the others travel while the stage before computes
    gathered = 3 * others * _passing(trained, config, largest)  # for forward and for backward, and as gradients
    name = "every rank" if segment.batch_size % num_ranks == 0 else "a rank with most images"
    total = {"sent": int(sent + gathered), "exposed": int(exposed + gathered)}
    return [RankEstimate(name=name, memory=memory, buffers=trained.buffers(_LAYER_COPIES), **total)]


def spared_bytes(config: TrainingConfig, num_ranks: int) -> int:
    """Return the bytes that sharding spares each rank, at most, less the fewest of buffers for exchange."""
    if num_ranks == 1:
        return 0
    trained = _trained(config)
    states = 0 if config.run.shard == "none" else STATES * (trained.rest + trained.layers) + 2 * trained.layers
    return states - states // num_ranks - trained.buffers(_FEWEST_LAYER_COPIES)


def _trained(config: TrainingConfig) -> _Trained:
    with FakeTensorMode():
        model: Any = without_values(config).model
        whole = {"all": list(model.named_parameters())}
        groups = config.method.flow.partition(model) if isinstance(config, Config) else whole
        parts = network.parts(model) if config.run.shard == "full" else ()
        layers = [[list(layer.parameters()) for layer in network.called_layers(part)] for part in parts]
        sizes = [[sum(p.nbytes for p in layer) for layer in part] for part in layers]
        sharded = {p for part in layers for layer in part for p in layer}
        rest = [sum(p.nbytes for _, p in group if p.requires_grad and p not in sharded) for group in groups.values()]
    encoder, *heads = [sum(part) for part in sizes] or [0]
    largest = max((size for part in sizes for size in part), default=0)
    return _Trained(tuple(rest), encoder, sum(heads), largest)


def _passing(trained: _Trained, config: Config, segment: Segment) -> int:
    """Return the bytes of all sharded layers, as often as images of a step go through them."""
    return segment.per_step * trained.encoder + sum(segment.passes(config.run.num_slices)) * trained.heads


def _sharded(memory: MemoryEstimate, trained: _Trained, num_ranks: int) -> MemoryEstimate:
    """Return what a rank needs that has a share of the optimizer's state, and of layers."""
    elsewhere = trained.layers - trained.layers // num_ranks
    weights, optimizer = memory.weights - elsewhere, memory.optimizer // num_ranks
    gradients = min(memory.gradients, trained.rest + trained.layers // num_ranks)
    static = memory.weights - weights + memory.optimizer - optimizer
    # Gradients are at their peak when activations need not be: both bounds hold, and the peak is below the lower one.
    peak = min(memory.peak - static, weights + optimizer + gradients + memory.inputs + memory.activations)
    return replace(
        memory,
        weights=weights,
        optimizer=optimizer,
        gradients=gradients,
        bound=min(memory.bound - static, peak),
        peak=peak,
    )
