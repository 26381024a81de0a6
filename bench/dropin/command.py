"""`python -m bench dropin`: training steps of host programs, patched and not, with the same seed and in turns."""

import argparse
import copy
import functools
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import bimkern.torchvision_compat  # noqa: F401  before the first import of timm or transformers
from bench import cli, malloc
from bench.dropin import parts
from bench.dropin.cases import HOSTS, BenchHost
from bench.entry import Run
from bench.failures import Failures
from bench.refcheck import WrongResult
from bench.timing import Clock, clock_for, in_turns, summarize
from bimkern.arena import Arena, unusable
from bimkern.dropin import patch
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker
from bimkern.units import human_bytes

_FIRST, _LATER = 1e-6, 1e-4  # relative differences of a loss that are allowed
_ROUNDS = 8
_UNTIMED = 3  # steps with an arena that differ from all later ones: unrecorded, recorded, and the first by the plan
_SAMPLE = 0.1  # seconds of calls of a target that are timed together


@dataclass
class Trainee:
    """A model in training, and what its steps cost."""

    host: BenchHost
    model: nn.Module
    images: Tensor
    losses: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)  # page faults of the timed steps
    live: int = 0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        """Run one step, its masks drawn from a seed that counts the steps."""
        torch.manual_seed(len(self.losses))
        loss = self.host.loss(self.model, self.images)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def timed_step(self) -> None:
        """Run one step and count its page faults."""
        before = _page_faults()
        self.step()  # reads the loss, so a device is done
        self.faults.append(_page_faults() - before)

    def run_target(self) -> None:
        """Compute the target alone."""
        assert self.host.target is not None
        self.host.target(self.model, self.images).flatten()[0].item()  # read, so a device is done

    def count_live_bytes(self) -> None:
        """Count the activations and their gradients that live at once in a step."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        with AllocationTracker(trained, counter := LiveBytes()):
            self.step()
        self.live = counter.peak


class TraineeInArena(Trainee):
    """A model whose steps allocate in an arena."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arena = Arena()

    def step(self) -> None:
        """Run one step; its loss, gradients and activations are freed inside the scope."""
        with self.arena.scope("step"):
            super().step()

    def count_live_bytes(self) -> None:
        """Take the bytes that the plan reserves, which are those of a step and no others."""
        self.step()
        self.live = self.arena.plan().peak


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parse(arguments)
    device = torch.device(given.device)
    if device.type == "cpu" and not given.arena:  # which saves what cold malloc costs a program
        # Threads that wait spin by default, which the time of the process would count: parts are short.
        malloc.restart_warm(["dropin", *arguments], {"OMP_WAIT_POLICY": "PASSIVE"} if given.parts else None)
    failures = Failures()
    for name in given.hosts or (parts.SIDES if given.parts else HOSTS):
        with failures.said(name):
            if given.parts:
                text = parts.report(name, device, given.batch_size, given.rounds, given.quick)
            else:
                rounds = given.rounds or _ROUNDS
                text = measure(name, device, given.batch_size, rounds, given.quick, arena=given.arena)
            print(text, flush=True)
    return 1 if failures.count else 0


def measure(name: str, device: torch.device, batch_size: int, rounds: int, tiny: bool, *, arena: bool = False) -> str:
    """Train a host, its patched copy and, if asked for, one in an arena in turns, and return a report.

    Raises:
        WrongResult: their losses part.
    """
    host = HOSTS[name]
    torch.manual_seed(0)
    model = host.make(tiny).to(device).train()
    side = host.image_size(tiny)
    # Multiples of 1/256, as of photographs: on them HOG of the hosts does not round.
    images = torch.randint(256, (batch_size, 3, side, side), device=device) / 256
    patched = copy.deepcopy(model)
    start = time.process_time()
    done = patch(patched)
    patching = time.process_time() - start
    plain, ours = Trainee(host, model, images), Trainee(host, patched, images)
    trainees = {"host": plain, "patched": ours}
    if arena:
        trainees["arena"] = TraineeInArena(host, copy.deepcopy(patched), images)
    for trainee in trainees.values():
        for _ in range(_UNTIMED if arena else 1):
            trainee.step()
        _compare(name, plain.losses, trainee.losses)
    clock = clock_for(device, process_time=device.type == "cpu")  # the latter is not lengthened by other programs
    seconds = in_turns({label: trainee.timed_step for label, trainee in trainees.items()}, clock, rounds)
    for trainee in trainees.values():
        trainee.count_live_bytes()
    largest = _compare(name, plain.losses, ours.losses)
    lines = [
        f"{name}: batch {batch_size}, {rounds} rounds, patched in {patching * 1e3:.0f} ms",
        f"  loss: {plain.losses[0]:.7g} and {ours.losses[0]:.7g} at first; {len(plain.losses)} differ by {largest:.1g}",
        *_report(plain, ours, seconds),
    ]
    if host.target is not None:
        before, after = _time_targets([plain, ours], clock, rounds)
        lines.append(f"  target alone: {before * 1e3:.3g} ms and {after * 1e3:.3g} ms, {before / after:.0f}x")
    lines += [f"  {line}" for line in str(done).splitlines()]
    if arena:
        lines += _report_arena(name, trainees, seconds)
    return "\n".join(lines)


def _time_targets(trainees: Sequence[Trainee], clock: Clock, rounds: int) -> list[float]:
    """Return the seconds of a target, from samples of many calls: the time of a process advances in long ticks."""
    runs: dict[str, Run] = {}
    counts = []
    for trainee in trainees:
        trainee.run_target()
        counts.append(1 + int(_SAMPLE / max(clock(trainee.run_target), _SAMPLE / 1000)))
        runs[str(len(runs))] = functools.partial(_repeat, trainee.run_target, counts[-1])
    times = in_turns(runs, clock, rounds).values()
    return [summarize(seconds).median / count for seconds, count in zip(times, counts, strict=True)]


def _repeat(run: Run, count: int) -> None:
    for _ in range(count):
        run()


def _compare(name: str, plain: Sequence[float], ours: Sequence[float]) -> float:
    """Return the largest relative difference of two curves of losses."""
    differences = [abs(a - b) / abs(a) for a, b in zip(plain, ours, strict=True)]
    if not differences[0] <= _FIRST or not max(differences) <= _LATER:
        raise WrongResult(f"{name}: losses are {list(plain)} without and {list(ours)} with the patch")
    return max(differences)


def _report(plain: Trainee, ours: Trainee, seconds: Mapping[str, Sequence[float]]) -> list[str]:
    batch = len(plain.images)
    times = {label: summarize(of_label) for label, of_label in seconds.items()}
    lines = []
    for label, trainee in (("host", plain), ("patched", ours)):
        step = times[label]
        speed = f"{step.median:.3f} s ({step.p20:.3f} to {step.p80:.3f})  {batch / step.median:.3g} images/s"
        lines.append(f"  {label:<8} {speed}  live {human_bytes(trainee.live)}")
    ratio = times["patched"].median / times["host"].median
    return [*lines, f"  patched/host: time {ratio:.3f}, live {ours.live / plain.live:.3f}"]


def _report_arena(name: str, trainees: Mapping[str, Trainee], seconds: Mapping[str, Sequence[float]]) -> list[str]:
    ours, inside = trainees["patched"], trainees["arena"]
    if inside.losses != ours.losses:
        raise WrongResult(f"{name}: losses are {ours.losses} without and {inside.losses} with the arena")
    before, patched, after = (summarize(seconds[label]).median for label in trainees)
    faults = ", ".join(f"{summarize(trainee.faults).median:.0f}" for trainee in trainees.values())
    return [
        f"  in an arena {after:.3f} s  plan {human_bytes(inside.live)}; the same losses, bit for bit",
        f"  arena/host: time {after / before:.3f}; arena/patched: time {after / patched:.3f}",
        f"  page faults a step: {faults} (host, patched, in an arena)",
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Raises:
        UsageError: a name, a value or a device is not there.
    """
    parser = cli.Parser(prog="python -m bench dropin", description=__doc__.partition(": ")[2])
    choices = f"{', '.join(HOSTS)}; with --parts: {', '.join(parts.SIDES)}"
    parser.add_argument("hosts", nargs="*", metavar="HOST", help=f"{choices}; default: all")
    parser.add_argument("--batch-size", type=cli.positive, default=8, help="images per step (default: 8)")
    rounds = f"steps of each that are timed (default: {_ROUNDS}), or calls of each part (default: those of 2 s)"
    parser.add_argument("--rounds", type=cli.positive, help=rounds)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--parts", action="store_true", help="time what is replaced alone, forward and backward")
    parser.add_argument(
        "--arena", action="store_true", help="also run the patched steps in an arena (CPU); malloc is cold then"
    )
    given = parser.parse_intermixed_args(arguments)
    cli.check_device(given.device)
    if given.arena and (reason := "it is timed on a CPU" if given.device != "cpu" else unusable()):
        raise cli.UsageError(f"--arena with --device {given.device}: {reason}")
    if given.arena and given.parts:
        raise cli.UsageError("--arena belongs to whole steps, got --parts too")
    known = parts.SIDES if given.parts else HOSTS
    unknown = [name for name in given.hosts if name not in known]
    if unknown:
        raise cli.UsageError(f"no host is named {unknown[0]!r}; choose from {', '.join(known)}")
    return given
