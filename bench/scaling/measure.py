"""Measure steps on two ranks that a slow cable joins, beside what the model says of them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.scaling.methods import BIM, BIM_AT_END, NAMES
from bench.scaling.model import Link, Phase, reduced_at_end, simulate, wire_bytes
from bench.scaling.namespaces import Namespace, limit, two_namespaces

RANKS = 2
_PORT = "29431"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method: medians, in seconds of a step of one rank's batch."""

    method: str
    compute_s: float  # without communication
    wire_s: float  # of communication without compute
    step_s: float
    predicted_s: float
    gradient_bytes: int
    times: tuple[float, ...] = field(default=(), repr=False)  # of the step, by round

    @property
    def wait_s(self) -> float:
        return self.step_s - self.compute_s

    @property
    def overlapped(self) -> float:
        """Return the share of the communication that the step does not wait for."""
        return 1 - self.wait_s / self.wire_s

    @property
    def wire_bytes(self) -> float:
        """Return what each rank sends."""
        return wire_bytes(self.gradient_bytes, RANKS)


@dataclass(frozen=True, kw_only=True)
class Run:
    link: Link
    rate: float  # bytes a second that the cable lets through, with all headers
    methods: list[Measured]


class Pair:
    """Two ranks that measure the same at the same time."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def ask(self, measure: str, **options: Any) -> Any:
        """Return the answer of rank 0; a number is the larger of both."""
        order = json.dumps({"measure": measure, **options})
        for process in self._processes:
            assert process.stdin is not None
            print(order, file=process.stdin, flush=True)
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                raise RuntimeError(f"a rank ended with exit code {process.wait()} while it measured {measure}")
            answers.append(json.loads(line))
        return max(answers) if isinstance(answers[0], int | float) else answers[0]


@contextmanager
def started(spaces: Sequence[Namespace], batch_size: int) -> Iterator[Pair]:
    """Start a rank in each namespace; they end with the context."""
    processes = []
    for rank, space in enumerate(spaces):
        ranks = {"RANK": f"{rank}", "LOCAL_RANK": "0", "WORLD_SIZE": f"{RANKS}"}
        meeting = {"MASTER_ADDR": spaces[0].address, "MASTER_PORT": _PORT, "GLOO_SOCKET_IFNAME": space.device}
        command = space.command([sys.executable, "-m", "bench.scaling.rank", str(batch_size)])
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | ranks | meeting, **pipes))
    try:
        yield Pair(processes)
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(*, batch_size: int, share: float, rounds: int, steps: int) -> Run:
    """Measure all methods in turns.

    Args:
        batch_size: images of a rank.
        share: communication of BIM alone, as a share of its compute; the cable is slowed until it is.
        rounds: alternations of the methods.
        steps: of one measurement.

    Raises:
        NoNamespaces: this machine or user cannot make any.
    """
    with two_namespaces() as spaces, started(spaces, batch_size) as pair:
        rate = pair.ask("gradient_bytes", name=BIM) / (share * pair.ask("compute", name=BIM, steps=steps))
        limit(spaces, rate)
        phases = {name: _phases(pair, name) for name in NAMES}
        times: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for name, found in _round(pair, phases[BIM], steps).items():
                times.setdefault(name, []).append(found)
        link = _link(pair, pair.ask("gradient_bytes", name=BIM))
        sleeping = {f"{name}, asleep": phases[BIM] for name in (BIM, BIM_AT_END)}
        sleeping[f"{BIM_AT_END}, asleep"] = reduced_at_end(phases[BIM])
        known = phases | sleeping
        return Run(link=link, rate=rate, methods=[_summary(name, times[name], known[name], link) for name in times])


def _phases(pair: Pair, name: str) -> list[Phase]:
    return [Phase(**phase | {"waits_for": tuple(phase["waits_for"])}) for phase in pair.ask("phases", name=name)]


def _round(pair: Pair, of_bim: Sequence[Phase], steps: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in NAMES:
        size = pair.ask("gradient_bytes", name=name)
        found[name] = {
            "compute": pair.ask("compute", name=name, steps=steps),
            "step": pair.ask("step", name=name, steps=steps),
            "wire": pair.ask("all_reduce", num_bytes=size),
            "bytes": size,
        }
    compute = sum(phase.compute_s for phase in of_bim)
    given = [vars(phase) for phase in of_bim]
    for name, at_end in ((BIM, False), (BIM_AT_END, True)):
        seconds = pair.ask("asleep", phases=given, at_end=at_end, steps=steps)
        found[f"{name}, asleep"] = found[name] | {"compute": compute, "step": seconds}
    return found


def _link(pair: Pair, num_bytes: int) -> Link:
    nothing, whole = (pair.ask("all_reduce", num_bytes=size) for size in (4, num_bytes))
    return Link(bytes_per_s=num_bytes / (whole - nothing), latency_s=nothing / 2)


def _summary(name: str, rounds: Sequence[Mapping[str, float]], phases: Sequence[Phase], link: Link) -> Measured:
    compute, step, wire = (median(found[key] for found in rounds) for key in ("compute", "step", "wire"))
    return Measured(
        method=name,
        compute_s=compute,
        wire_s=wire,
        step_s=step,
        predicted_s=simulate(phases, link, RANKS).seconds,
        gradient_bytes=round(rounds[0]["bytes"]),
        times=tuple(found["step"] for found in rounds),
    )
