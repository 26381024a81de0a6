"""A model of step time on several devices: phases of compute, and one wire on which their gradients are reduced."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

_STEPS = 8  # after which a step takes as long as the one before


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins the devices."""

    bytes_per_s: float  # that a device sends, and receives at the same time
    latency_s: float  # of one message

    def all_reduce_s(self, num_bytes: float, ranks: int) -> float:
        """Return the seconds of an all-reduce: the bytes of a ring, with the messages of a tree."""
        if ranks == 1:
            return 0.0
        return 2 * math.ceil(math.log2(ranks)) * self.latency_s + wire_bytes(num_bytes, ranks) / self.bytes_per_s

    def send_s(self, num_bytes: float) -> float:
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Compute without a pause, and the gradients that are reduced from its end on."""

    compute_s: float
    gradient_bytes: float = 0.0
    waits_for: tuple[int, ...] = ()  # phases whose gradients of the step before must have arrived when it begins


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step in steady state, in seconds."""

    seconds: float
    compute: float
    wire: float  # of communication, if nothing else happened

    @property
    def wait(self) -> float:
        return self.seconds - self.compute

    @property
    def overlapped(self) -> float:
        """Return the share of the communication under which the device computes, 1 where there is none."""
        return 1 - self.wait / self.wire if self.wire else 1.0


def wire_bytes(num_bytes: float, ranks: int) -> float:
    """Return the bytes that each of the ranks sends in an all-reduce."""
    return 2 * (ranks - 1) / ranks * num_bytes


def simulate(phases: Sequence[Phase], link: Link, ranks: int) -> Step:
    """Let ranks run the phases of a step several times, and return the last step.

    Reductions follow each other on the wire in the order in which their gradients are complete.
    """
    wires = [link.all_reduce_s(phase.gradient_bytes, ranks) if phase.gradient_bytes else 0.0 for phase in phases]
    now, free, began = 0.0, 0.0, 0.0
    arrived = [0.0] * len(phases)
    for _ in range(_STEPS):
        began = now
        for i, (phase, wire) in enumerate(zip(phases, wires, strict=True)):
            now = max([now, *(arrived[j] for j in phase.waits_for)]) + phase.compute_s
            if phase.gradient_bytes:
                free = arrived[i] = max(now, free) + wire
    return Step(seconds=now - began, compute=sum(phase.compute_s for phase in phases), wire=sum(wires))


def typical(tried: Sequence[Sequence[Phase]]) -> list[Phase]:
    """Return the phases of a step, each as long as the median of several tries."""
    return [
        replace(found[0], compute_s=median(phase.compute_s for phase in found)) for found in zip(*tried, strict=True)
    ]


def reduced_at_end(phases: Sequence[Phase]) -> list[Phase]:
    """Return the same phases with one all-reduce of all gradients, for which the next step waits."""
    whole = sum(phase.gradient_bytes for phase in phases)
    bare = [Phase(compute_s=phase.compute_s) for phase in phases]
    bare[-1] = replace(bare[-1], gradient_bytes=whole)
    bare[0] = replace(bare[0], waits_for=(len(bare) - 1,))
    return bare


def pipeline_step(stages: Sequence[Phase], sent_bytes: Sequence[float], link: Link, ranks: int) -> Step:
    """Return a step of a pipeline in which every stage has a device of its own, and pipelines are copies.

    As many images as the devices would share pass each stage. Nothing travels back, so the slowest stage sets the
    pace: its compute, or its input on the wire, whichever takes longer, and the reduction over the copies.

    Args:
        stages: compute of one device's images, and gradients.
        sent_bytes: of each stage's output of these images, [stages - 1].
        link: joins the devices.
        ranks: a multiple of the stages.
    """
    depth = len(stages)
    copies = ranks // depth
    received = [0.0, *(link.send_s(depth * num_bytes) for num_bytes in sent_bytes)]
    reduced = [link.all_reduce_s(stage.gradient_bytes, copies) for stage in stages]
    computed = [depth * stage.compute_s for stage in stages]
    paces = [max(own, wire) + last for own, wire, last in zip(computed, received, reduced, strict=True)]
    slowest = max(range(depth), key=paces.__getitem__)
    return Step(seconds=paces[slowest], compute=computed[slowest], wire=received[slowest] + reduced[slowest])
