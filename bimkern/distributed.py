"""Ranks: the processes that train one network together, started by torchrun, and all that they exchange.

Tensors of a GPU travel by NCCL, those of the host by gloo. What ranks agree on has a connection of its own, so that it
does not wait behind gradients. One process alone has the same interface.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from itertools import count
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore, _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from bimkern.errors import BimkernError
from bimkern.transfers import NotSent, RankLost, Sum, begun, lost

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of torchrun, beside WORLD_SIZE
_PATIENCE = timedelta(days=7)
_ANSWER = 10.0  # seconds, within which a store answers that is not lost
_runs = count()  # of this process, as of any other rank


class RanksError(BimkernError, ValueError):
    """The ranks of a run cannot come together; the message gives the reason and the remedy."""


class OtherRank(BimkernError):
    """Another rank cannot continue, and says so."""


class Ranks(Protocol):
    """The ranks of a run. Every rank calls the same functions in the same order, each of which waits for all."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def patient(self) -> AbstractContextManager[None]:
        """Agree with ranks that take their time, as one that checks a million images: only their end is noticed."""

    def begin_sum(self, tensor: Tensor) -> Sum:
        """Begin to sum a contiguous tensor over the ranks, in place."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""

    def copy(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite a contiguous tensor with that of another rank."""

    def begin_copy(self, tensor: Tensor, source: int) -> Sum:
        """Begin to overwrite a contiguous tensor with that of a rank; sums may begin in any order between copies."""

    def move(self, tensor: Tensor, source: int, target: int) -> None:
        """Overwrite a contiguous tensor of one rank with that of another; it is nothing to the rest."""

    def highest(self, values: Sequence[int]) -> list[int]:
        """Return the highest that any rank gives, of each of a few integers."""

    def gather(self, value: Any) -> list[Any]:
        """Return what every rank gives, as JSON, by rank."""

    def share(self, value: Any) -> Any:
        """Return what rank 0 gives, as JSON."""


class Alone:
    """One process, which waits for no other."""

    rank, size = 0, 1

    def patient(self) -> AbstractContextManager[None]:
        return nullcontext()

    def begin_sum(self, tensor: Tensor) -> Sum:
        return NotSent()

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def copy(self, tensor: Tensor, source: int = 0) -> None:
        pass

    def begin_copy(self, tensor: Tensor, source: int) -> Sum:
        return NotSent()

    def move(self, tensor: Tensor, source: int, target: int) -> None:
        pass

    def highest(self, values: Sequence[int]) -> list[int]:
        return list(values)

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def share(self, value: Any) -> Any:
        return value


ALONE = Alone()


class Group:
    """Several processes, through torch.distributed."""

    def __init__(self, backend: str, timeout: timedelta) -> None:
        """Initialize the process group, from the variables that torchrun sets."""
        store, self.rank, self.size = next(rendezvous("env://", timeout=timeout))
        # A store of torchrun's outlives the processes that it restarts, whose addresses are still there.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"bimkern attempt {attempt}, run {next(_runs)}", store)
        options: Any = {"store": self._store, "rank": self.rank, "world_size": self.size}
        dist.init_process_group(backend, timeout=timeout, **options)
        self._copying = dist.new_group(timeout=timeout)
        self.timeout = timeout
        self._agreeing = dist.new_group(backend="gloo", timeout=timeout)
        self._patient = dist.new_group(backend="gloo", timeout=timeout)  # as long as ranks connect
        _set_pg_timeout(_PATIENCE, self._patient)

    def mesh(self, device: str) -> DeviceMesh:
        """Return the ranks as a mesh of a type of device, with a connection of its own; all ranks call this at once."""
        return DeviceMesh.from_group(dist.new_group(timeout=self.timeout), device)

    @contextmanager
    def patient(self) -> Iterator[None]:
        impatient, self._agreeing = self._agreeing, self._patient
        try:
            yield
        finally:
            self._agreeing = impatient

    def begin_sum(self, tensor: Tensor) -> Sum:
        return begun(tensor, lambda: dist.all_reduce(tensor, async_op=True))

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        with lost():
            dist.all_reduce(total, group=None if tensor.is_cuda else self._agreeing)
        return total

    def copy(self, tensor: Tensor, source: int = 0) -> None:
        with lost():
            dist.broadcast(tensor, src=source)

    def begin_copy(self, tensor: Tensor, source: int) -> Sum:
        return begun(tensor, lambda: dist.broadcast(tensor, src=source, group=self._copying, async_op=True))

    def move(self, tensor: Tensor, source: int, target: int) -> None:
        with lost():
            if self.rank == source:
                dist.send(tensor, target)
            elif self.rank == target:
                dist.recv(tensor, source)

    def highest(self, values: Sequence[int]) -> list[int]:
        return self.begin_highest(values)()

    def begin_highest(self, values: Sequence[int]) -> Callable[[], list[int]]:
        """Begin what highest() does; return what waits for its result."""
        found = torch.tensor(values, dtype=torch.int64)
        with lost():
            work = dist.all_reduce(found, dist.ReduceOp.MAX, group=self._agreeing, async_op=True)

        def result() -> list[int]:
            with lost():
                work.wait()
            return found.tolist()

        return result

    def gather(self, value: Any) -> list[Any]:
        text = _encoded(value)
        (longest,) = self.highest([len(text)])
        padded = torch.nn.functional.pad(text, (0, longest - len(text)), value=ord(" "))
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with lost():
            dist.all_gather(found, padded, group=self._agreeing)
        return [_decoded(one) for one in found]

    def share(self, value: Any) -> Any:
        text = _encoded(value if self.rank == 0 else None)
        (length,) = self.highest([len(text) if self.rank == 0 else 0])
        text = text if self.rank == 0 else torch.empty(length, dtype=torch.uint8)
        with lost():
            dist.broadcast(text, src=0, group=self._agreeing)
        return _decoded(text)

    def first_failure(self, exit_code: int) -> tuple[bool, int]:
        """Return whether this rank is the first to fail, and the exit code of the first; without an answer, it is."""
        own = f"{self.rank} {exit_code}"
        found: list[str] = []

        def ask() -> None:
            with suppress(RuntimeError):  # the rank that keeps the store has ended
                found.append(self._store.compare_set("failed", "", own).decode())

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(min(self.timeout.total_seconds(), _ANSWER))  # a rank that hangs keeps a store that never answers
        first = found[0] if found else own
        return first == own, int(first.split()[1])


@contextmanager
def connected(device: str, timeout: float) -> Iterator[Ranks]:
    """Connect the ranks that torchrun started, or return one process alone; only rank 0 prints to stdout meanwhile.

    Args:
        device: type of the device that gradients are on.
        timeout: seconds that a rank waits for the others.

    Raises:
        RanksError: they cannot be connected.
    """
    if world_size() == 1:
        yield ALONE
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise RanksError(
            f"WORLD_SIZE={world_size()} without {', '.join(missing)}: start several ranks with torchrun "
            f"--nproc-per-node N -m bimkern.pretrain ..., or unset WORLD_SIZE"
        )
    try:
        group = Group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        if dist.is_initialized():  # and one of the further connections was refused
            dist.destroy_process_group()
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = "the port is in use" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        raise RanksError(
            f"the {world_size()} ranks cannot connect at {where} ({reason}); choose another --master-port for torchrun"
        ) from error
    try:
        with _quiet() if group.rank else nullcontext():
            yield group
    except BimkernError as error:
        if error.of_all_ranks and group.rank:
            error.reported = True  # by rank 0, whose store may have ended with it
        elif error.reported is None:
            is_first, exit_code = group.first_failure(error.exit_code)
            error.reported = not (is_first or error.of_all_ranks)
            if isinstance(error, RankLost):
                error.exit_code = exit_code
        raise
    except BaseException as error:
        group.first_failure(_exit_code(error))  # so that ranks which miss this one say nothing
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def agreed(ranks: Ranks, kind: type[BimkernError] = OtherRank) -> Iterator[None]:
    """Run something on every rank; where it fails on some, fail on all.

    Raises:
        BimkernError: its own error, or one of this kind where it failed on another rank.
    """
    own: BimkernError | None = None
    try:
        yield
    except BimkernError as error:
        own = error
    first = first_error(ranks, own, kind)
    if first is not None:
        raise first


def first_error(ranks: Ranks, own: BimkernError | None, kind: type[BimkernError] = OtherRank) -> BimkernError | None:
    """Return the error of the first rank that has one, of this kind where that is another; None where none has.

    Rank 0 reports it.
    """
    found = ranks.gather(None if own is None else [str(own), own.exit_code])
    failed = next((rank for rank, one in enumerate(found) if one is not None), None)
    if failed is None:
        return None
    text, exit_code = found[failed]
    first = own if own is not None and failed == ranks.rank else kind(f"rank {failed}: {text}")
    first.exit_code, first.reported = exit_code, ranks.rank > 0
    return first


def world_size() -> int:
    """Return how many ranks torchrun started.

    Raises:
        RanksError: WORLD_SIZE is no number of them.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise RanksError(f"WORLD_SIZE must be a number of ranks, got {size!r}; unset it, or start with torchrun")
    return int(size)


def env_rank() -> int:
    """Return the rank that torchrun gave to this process, 0 without torchrun."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else 0


def local_world_size() -> int:
    """Return how many processes torchrun started on this machine, 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def local_rank() -> int:
    """Return which of this machine's ranks this process is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def _exit_code(error: BaseException) -> int:
    """Return what a command ends with that an error of another kind than ours, or a signal, has ended."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return int(getattr(error, "exit_code", 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Print nothing that rank 0 prints too."""
    logger = logging.getLogger("bimkern.train")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(None):
            yield
    finally:
        logger.setLevel(level)


def _encoded(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())
