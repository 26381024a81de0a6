"""From the phases of base recipes, measured on this CPU, to their steps on many fast devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.flops import step_flops
from bench.scaling.methods import Ours
from bench.scaling.model import Link, Phase, Step, pipeline_step, simulate, typical
from bimkern.distributed.ranks import ALONE
from bimkern.mim.flow import Local
from bimkern.recipes import RECIPES
from bimkern.train.config.run import Config

RECIPES_SHOWN = ("bim_vit_base", "mae_vit_base", "localmim_vit_base")
MEASURED_IMAGES = 4  # of a step on this CPU
_TRIES = 3
RANKS = tuple(2**i for i in range(11))


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device is taken to do, and the cable between two of them."""

    flops_per_s: float = 2e14  # sustained in matrix products: a third of what bfloat16 can reach on an H200
    images: int = 256  # of a step, on each
    value_bytes: int = 2  # of an activation
    link: Link


@dataclass(frozen=True, kw_only=True)
class Line:
    """The share of one device's speed that each of many keeps, by their number."""

    label: str
    efficiencies: Mapping[int, float]


def measured_phases() -> dict[str, list[Phase]]:
    """Run some steps of every shown recipe, and return their phases, by recipe."""
    found = {}
    for name in RECIPES_SHOWN:
        method = Ours(RECIPES[name].config, MEASURED_IMAGES, ALONE)
        method.step()
        found[name] = typical([method.phases() for _ in range(_TRIES)])
    return found


def lines(phases: Mapping[str, Sequence[Phase]], device: Device) -> list[Line]:
    """Return the shown recipes on up to 1024 devices, with as many images on each, and BIM as a pipeline."""
    found = []
    for name, measured in phases.items():
        config = RECIPES[name].config
        scaled = _scaled(measured, step_flops(config.method) * device.images / device.flops_per_s)
        alone = simulate(scaled, device.link, 1).seconds
        steps = {ranks: simulate(scaled, device.link, ranks) for ranks in RANKS}
        found.append(_line(name, steps, alone))
        if isinstance(config.method.flow, Local):
            sent = [_sent_bytes(config, stage, device) for stage in range(len(scaled) - 1)]
            usable = [ranks for ranks in RANKS if ranks % len(scaled) == 0]
            pipelines = {ranks: pipeline_step(scaled, sent, device.link, ranks) for ranks in usable}
            found.append(_line(f"{name}, pipelines of {len(scaled)}", pipelines, alone))
    return found


def _line(label: str, steps: Mapping[int, Step], alone: float) -> Line:
    return Line(label=label, efficiencies={ranks: alone / step.seconds for ranks, step in steps.items()})


def _scaled(phases: Sequence[Phase], seconds: float) -> list[Phase]:
    whole = sum(phase.compute_s for phase in phases)
    return [replace(phase, compute_s=phase.compute_s * seconds / whole) for phase in phases]


def _sent_bytes(config: Config, stage: int, device: Device) -> float:
    encoder = config.method.encoder
    level = encoder.level(config.method.taps[stage] + 1)
    grid = encoder.level(0).grid(*encoder.image_size)
    counts = config.method.masker.entering(grid, len(config.method.taps))
    return device.images * counts[stage] * level.width * device.value_bytes
