"""`python -m bimkern.plan [RECIPE] [options]`: predict the memory of a run before it starts."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bimkern.arena import Plan, draw
from bimkern.cli import command
from bimkern.cli.config_options import ConfigOptions, change_config, choose_config
from bimkern.data.step_layout import Segment
from bimkern.mim.recompute import LAYERS, described
from bimkern.output import printing
from bimkern.train.config.run import Config, ConfigError, Precision, ShardName
from bimkern.train.memory.budget import FittingOptions, MemoryEstimator, find_fitting, find_recompute, segments
from bimkern.train.memory.estimate import MemoryEstimate, step_plan
from bimkern.train.memory.extrapolate import METHOD
from bimkern.train.memory.shared_plan import RankBudget, SharedPlan, plan_ranks
from bimkern.units import human_bytes, parse_bytes

_PROGRAM = "python -m bimkern.plan"
_AUTO = "auto"  # of --recompute
_DESCRIPTION = """\
Predict the memory of a training step. It traces one step on tensors without storage and plans it like the arena, so the
device is not needed. The process itself, allocations inside libraries, loaders and copies for checkpoints are extra.

Examples:
  python -m bimkern.plan bim_vit_large --batch-size 4096 --limit 80GiB
  python -m bimkern.plan mae_vit_base --batch-size 64 --slices 8 --picture memory.png
"""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of a run that change its memory, and how to report it."""

    batch_size: int
    """Images per optimizer step."""
    micro_batch: int | None
    """Images per forward and backward pass. Default: batch size."""
    slices: int
    """Parts in which a head decodes a micro-batch."""
    recompute: str
    """Layers of the encoder that run once more in the backward pass: none, layers, stages, a number of every stage; or
    auto, few with which the batch fits into --limit."""
    precision: Precision
    """Precision of matrix products."""
    teacher: Path | None
    """Exported backbone to distill from, for recipes with distillation."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device whose alignment to use. Temporary memory of GPU kernels and libraries is unknown and not included."""
    limit: str | None = None
    """Memory limit, like 24GiB: report the largest batch that fits, and how to fit the requested one. With --ranks, it
    is the limit of each."""
    ranks: int = 1
    """Ranks that share the work: report the memory of each, and what it sends in a step."""
    shard: ShardName
    """What ranks share out among them: nothing, the optimizer's state, or also weights and gradients of all layers
    (full)."""
    pipeline: bool = False
    """One stage per rank: also propose the cut into so many stages whose largest takes the fewest operations."""
    bandwidth: str | None = None
    """Bandwidth of a rank's link in one direction, per second, like 10GiB: report the time that a step's bytes take."""
    json: bool = False
    """Print one JSON object, with sizes in bytes."""
    picture: Path | None = None
    """PNG file for a picture of one step: every allocation by lifetime and offset."""
    recipe: ConfigOptions

    @property
    def shared(self) -> bool:
        """Whether several ranks share the run."""
        return self.ranks != 1 or self.pipeline


@dataclass(frozen=True, kw_only=True)
class PhaseEstimate:
    """The memory of the steps of one phase."""

    segment: Segment
    estimate: MemoryEstimate


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    with command.ended_in_a_line(_PROGRAM):
        base = choose_config(arguments)
        options = command.parse(
            PlanOptions,
            arguments,
            usage=f"{_PROGRAM} [RECIPE]",
            description=_DESCRIPTION,
            default=_options_of(base),
        )
        automatic = options.recompute == _AUTO
        if automatic and options.limit is None:
            raise ConfigError("--recompute auto fits a batch into a --limit; give one, such as 24GiB")
        given = replace(options, recompute=base.run.recompute) if automatic else options
        config = change_config(base, options.recipe, given, arguments)
        command.check_parts(command.named(arguments), config.run)
        if options.picture is not None:
            _check_picture(options.picture)
        limit = None if options.limit is None else _bytes("--limit", options.limit)
        bandwidth = None if options.bandwidth is None else _bytes("--bandwidth", options.bandwidth)
        if config.run.shard != "none" and options.ranks == 1:
            raise ConfigError(f"--shard {config.run.shard} is for several ranks; say how many by --ranks")
        if bandwidth is not None and not options.shared:
            raise ConfigError("--bandwidth is for several ranks; say how many by --ranks")
        estimator = MemoryEstimator(options.device)
        if automatic:
            assert limit is not None
            config = _recomputing(config, options, estimator, limit)
        phases, shared, budget = _estimates(config, options, estimator)
        fits = None
        if limit is not None:
            fits = find_fitting(config, estimator, limit) if budget is None else budget.fitting(limit)
        if options.picture is not None:
            _draw(config, options.device, options.picture)
    with printing():
        if options.json:
            print(_json(config, phases, fits, shared, bandwidth))
        else:
            print(_text(config, phases, limit, fits, shared, bandwidth))


def _estimates(
    config: Config, options: PlanOptions, estimator: MemoryEstimator
) -> tuple[list[PhaseEstimate], SharedPlan | None, RankBudget | None]:
    """Estimate the phases of a run in one process, and what its ranks need in place of that, if it has several."""
    phases = [
        PhaseEstimate(segment=segment, estimate=estimator.estimate(config, segment)) for segment in segments(config)
    ]
    if not options.shared:
        return phases, None, None
    num_ranks, pipeline = options.ranks, options.pipeline
    shared = plan_ranks(config, _largest(phases).segment, estimator, num_ranks, pipeline=pipeline)
    if options.limit is None:
        return phases, shared, None
    return phases, shared, RankBudget(config, shared, estimator, num_ranks, pipeline=pipeline)


def _recomputing(config: Config, options: PlanOptions, estimator: MemoryEstimator, limit: int) -> Config:
    """Return the config with the least recomputation that fits; with all of it where none fits, as a report tells."""
    budget = _estimates(config, options, estimator)[2] if options.shared else None
    choice = find_recompute(config, estimator, limit) if budget is None else budget.recompute(limit)
    return replace(config, run=replace(config.run, recompute=choice or LAYERS))


def _check_picture(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--picture is written as PNG and must end in .png, got {path}")
    if not path.parent.is_dir():
        raise ConfigError(f"--picture {path}: there is no folder {path.parent}")


def _options_of(config: Config) -> PlanOptions:
    run = config.run
    return PlanOptions(
        recipe=ConfigOptions.of(config),
        batch_size=run.batch_size,
        micro_batch=run.micro_batch,
        slices=run.slices,
        recompute=run.recompute,
        precision=run.precision,
        teacher=run.teacher,
        shard=run.shard,
    )


def _bytes(option: str, text: str) -> int:
    try:
        found = parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"{option} {error}") from error
    if found < 1:
        raise ConfigError(f"{option} must be above 0, got {text}")
    return found


def _draw(config: Config, device: str, path: Path) -> None:
    plans: list[Plan] = [step_plan(config, segment, device) for segment in segments(config)]
    try:
        draw(max(plans, key=lambda plan: plan.peak), path)
    except OSError as error:
        command.end(_PROGRAM, f"{path} cannot be written ({error.strerror})", exit_code=1)


def _largest(phases: Sequence[PhaseEstimate]) -> PhaseEstimate:
    return max(phases, key=lambda phase: phase.estimate.peak)


def _json(
    config: Config,
    phases: Sequence[PhaseEstimate],
    fits: FittingOptions | None,
    shared: SharedPlan | None,
    bandwidth: int | None,
) -> str:
    largest = _largest(phases)
    each = [
        {
            "image_size": phase.segment.image_size.saved,
            "batch_size": phase.segment.batch_size,
            "micro_batch": phase.segment.micro_batch,
            "peak": phase.estimate.peak,
        }
        for phase in phases
    ]
    found: dict[str, Any] = asdict(largest.estimate) | {"image_size": largest.segment.image_size.saved, "phases": each}
    found |= {"recompute": config.run.recompute}
    found |= {} if fits is None else {"fits": asdict(fits)}
    return json.dumps(found | ({} if shared is None else {"shared": shared.numbers(bandwidth)}))


def _text(
    config: Config,
    phases: Sequence[PhaseEstimate],
    limit: int | None,
    fits: FittingOptions | None,
    shared: SharedPlan | None,
    bandwidth: int | None,
) -> str:
    run, largest = config.run, _largest(phases)
    estimate = largest.estimate
    scopes = ", ".join(f"{name} {human_bytes(size)}" for name, size in estimate.scopes.items())
    together = sum((estimate.weights, estimate.gradients, estimate.optimizer, estimate.inputs, estimate.activations))
    facts = {
        "weights": human_bytes(estimate.weights),
        "gradients": f"{human_bytes(estimate.gradients)} at most",
        "optimizer": human_bytes(estimate.optimizer),
        "inputs": f"{human_bytes(estimate.inputs)}, the images of a step",
        "activations": f"{human_bytes(estimate.activations)} at most: {scopes}",
        "peak": f"{human_bytes(estimate.peak)}; no placement needs less than {human_bytes(estimate.bound)}",
        "parts": f"{human_bytes(together)} together: more than the peak if gradients are allocated as activations are "
        "freed, less if masks and gaps count",
    }
    if len(phases) > 1:
        number = phases.index(largest) + 1
        facts["phase"] = f"all of this is for phase {number} of {len(phases)}, {_phase(largest)}; peaks: " + (
            ", ".join(f"{human_bytes(phase.estimate.peak)} with {_phase(phase)}" for phase in phases)
        )
    if limit is not None:
        verdict = _verdict(estimate, limit) if shared is None else shared.verdict(limit)
        facts["limit"] = f"{verdict}. {fits}"
    facts |= {} if shared is None else shared.facts(bandwidth)
    facts["method"] = METHOD
    head = (
        f"{config.recipe}: steps of {run.batch_size} images, {run.images_at_a_time} at a time, "
        f"decoded in slices: {run.slices}, {run.precision}{described(run.recompute)}"
    )
    return "\n".join([head, *(f"  {name:11}  {fact}" for name, fact in facts.items())])


def _phase(phase: PhaseEstimate) -> str:
    segment = phase.segment
    return f"{segment.batch_size} images of {segment.image_size} px, {segment.micro_batch} at a time"


def _verdict(estimate: MemoryEstimate, limit: int) -> str:
    if estimate.peak <= limit:
        return f"the batch fits into {human_bytes(limit)}"
    static = estimate.weights + estimate.optimizer
    alone = f": weights and optimizer alone take {human_bytes(static)}" if static > limit else ""
    return f"above {human_bytes(limit)}{alone}"


if __name__ == "__main__":
    main()
