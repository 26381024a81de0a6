"""Two network namespaces joined by a cable of limited rate, so that two ranks of one machine lie apart.

Needs root, and `ip` and `tc` of iproute2. The rate is limited by a token bucket (tc tbf) at both ends of a veth.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

_BURST = 64 * 1024  # bytes that may pass at once
_QUEUE = "50ms"  # after which a packet is dropped


class NoNamespaces(Exception):
    """Namespaces cannot be made here; the message is one line that says why."""


@dataclass(frozen=True)
class Namespace:
    name: str
    device: str  # of its network
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs another inside."""
        return ["ip", "netns", "exec", self.name, *command]


@contextmanager
def two_namespaces(name: str = f"bimkern{os.getpid()}") -> Iterator[tuple[Namespace, Namespace]]:
    """Make two namespaces that reach each other and nothing else; they go at the end.

    Raises:
        NoNamespaces: they cannot be made here.
    """
    pair = [Namespace(f"{name}-{i}", f"cable{i}", f"10.77.0.{i + 1}") for i in range(2)]
    _refuse_where_none()
    with ExitStack() as stack:
        for space in pair:
            _run("ip", "netns", "add", space.name)
            stack.callback(_run, "ip", "netns", "del", space.name)
        first, second = pair
        ends = ("dev", first.device, "netns", first.name), ("dev", second.device, "netns", second.name)
        _run("ip", "link", "add", *ends[0][1:], "type", "veth", "peer", "name", *ends[1][1:])
        for space in pair:
            _run(*space.command(["ip", "addr", "add", f"{space.address}/24", "dev", space.device]))
            for device in ("lo", space.device):
                _run(*space.command(["ip", "link", "set", device, "up"]))
        yield first, second


def limit(spaces: Sequence[Namespace], bytes_per_s: float) -> None:
    """Set the rate of the cable, in each direction."""
    rate = f"{round(8 * bytes_per_s)}bit"
    for space in spaces:
        bucket = ("tbf", "rate", rate, "burst", str(max(_BURST, round(bytes_per_s / 250))), "latency", _QUEUE)
        _run(*space.command(["tc", "qdisc", "replace", "dev", space.device, "root", *bucket]))


def _refuse_where_none() -> None:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise NoNamespaces(f"{missing[0]} is not installed; install iproute2")
    if os.geteuid() != 0:
        raise NoNamespaces("network namespaces need root")


def _run(*command: str) -> None:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise NoNamespaces(f"`{' '.join(command)}`: {' '.join(done.stderr.split()) or f'exit {done.returncode}'}")
