"""`python -m bench dropin`: training steps of host programs, patched and not, with the same seed and in turns."""

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import bimkern.torchvision_compat  # noqa: F401  before the first import of timm or transformers
from bench import cli, malloc
from bench.dropin_hosts import HOSTS, BenchHost
from bench.failures import Failures
from bench.refcheck import WrongResult
from bench.timing import clock_for, in_turns, summarize
from bimkern.dropin import patch
from bimkern.train.memory.live_bytes import LiveBytes
from bimkern.train.memory.tracker import AllocationTracker
from bimkern.units import human_bytes

_FIRST, _LATER = 1e-6, 1e-4  # relative differences of a loss that are allowed


@dataclass
class Trainee:
    """A model in training, its losses, and the memory of a step."""

    host: BenchHost
    model: nn.Module
    images: Tensor
    losses: list[float] = field(default_factory=list)
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

    def run_target(self) -> None:
        """Compute the target alone."""
        assert self.host.target is not None
        self.host.target(self.model, self.images).sum().item()  # read, so a device is done

    def count_live_bytes(self) -> None:
        """Count the activations and their gradients that live at once in a step."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        with AllocationTracker(trained, counter := LiveBytes()):
            self.step()
        self.live = counter.peak


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parse(arguments)
    device = torch.device(given.device)
    if device.type == "cpu":
        malloc.restart_warm(["dropin", *arguments])
    failures = Failures()
    for name in given.hosts or HOSTS:
        with failures.said(name):
            print(measure(name, device, given.batch_size, given.rounds, given.quick), flush=True)
    return 1 if failures.count else 0


def measure(name: str, device: torch.device, batch_size: int, rounds: int, tiny: bool) -> str:
    """Train a host and its patched copy in turns and return a report.

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
    for trainee in (plain, ours):
        trainee.step()
    _compare(name, plain.losses, ours.losses)
    clock = clock_for(device, process_time=device.type == "cpu")  # the latter is not lengthened by other programs
    seconds = in_turns({"host": plain.step, "patched": ours.step}, clock, rounds)
    for trainee in (plain, ours):
        trainee.count_live_bytes()
    target = ""
    if host.target is not None:
        alone = in_turns({"host": plain.run_target, "patched": ours.run_target}, clock, rounds)
        before, after = (summarize(alone[label]).median for label in ("host", "patched"))
        target = f"  target alone: {before:.4f} s and {after:.4f} s, {before / after:.0f}x\n"
    largest = _compare(name, plain.losses, ours.losses)
    return _report(name, patching, largest, plain, ours, seconds, target + str(done))


def _compare(name: str, plain: Sequence[float], ours: Sequence[float]) -> float:
    """Return the largest relative difference of two curves of losses."""
    differences = [abs(a - b) / abs(a) for a, b in zip(plain, ours, strict=True)]
    if not differences[0] <= _FIRST or not max(differences) <= _LATER:
        raise WrongResult(f"{name}: losses are {list(plain)} without and {list(ours)} with the patch")
    return max(differences)


def _report(
    name: str,
    patching: float,
    largest: float,
    plain: Trainee,
    ours: Trainee,
    seconds: Mapping[str, Sequence[float]],
    done: str,
) -> str:
    times = {label: summarize(of_label) for label, of_label in seconds.items()}
    batch = len(plain.images)
    lines = [
        f"{name}: batch {batch}, {len(seconds['host'])} rounds, patched in {patching * 1e3:.0f} ms",
        f"  loss: {plain.losses[0]:.7g} and {ours.losses[0]:.7g} at first; {len(plain.losses)} differ by {largest:.1g}",
    ]
    for (label, step), trainee in zip(times.items(), (plain, ours), strict=True):
        speed = f"{step.median:.3f} s ({step.p20:.3f} to {step.p80:.3f})  {batch / step.median:.3g} images/s"
        lines.append(f"  {label:<8} {speed}  live {human_bytes(trainee.live)}")
    ratio = times["patched"].median / times["host"].median
    lines.append(f"  patched/host: time {ratio:.3f}, live {ours.live / plain.live:.3f}")
    return "\n".join(lines + [f"  {line}" for line in done.splitlines()])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Raises:
        UsageError: a name, a value or a device is not there.
    """
    parser = cli.Parser(prog="python -m bench dropin", description=__doc__.partition(": ")[2])
    parser.add_argument("hosts", nargs="*", metavar="HOST", help=f"{', '.join(HOSTS)}; default: all")
    parser.add_argument("--batch-size", type=cli.positive, default=8, help="images per step (default: 8)")
    parser.add_argument("--rounds", type=cli.positive, default=8, help="steps of each that are timed (default: 8)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    given = parser.parse_intermixed_args(arguments)
    cli.check_device(given.device)
    unknown = [name for name in given.hosts if name not in HOSTS]
    if unknown:
        raise cli.UsageError(f"no host is named {unknown[0]!r}; choose from {', '.join(HOSTS)}")
    return given
