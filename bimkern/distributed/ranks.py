"""Ranks: the processes that train one network together, and all that they exchange.

Tensors of a GPU travel by NCCL, those of the host by gloo. What ranks agree on has a connection of its own, so that it
does not wait behind gradients. One process alone has the same interface.
"""

import gc
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a process group, which its defaults would keep
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bimkern.distributed.launch import RanksError
from bimkern.distributed.transfers import NotSent, RankLost, Transfer, begun, lost

PATIENCE = timedelta(days=7)  # with a rank that takes its time
ANSWER = 10.0  # seconds, within which a store answers that is not lost
_BEAT = 5.0  # seconds, after which rank 0 says that it still waits for its disk
_runs = count()  # of this process, as of any other rank
# The store of the last run. Rank 0 serves it until its next run, which another rank may begin earlier than rank 0.
_kept: list[Any] = []


class Ranks(Protocol):
    """The ranks of a run. Every rank calls the same functions in the same order, each of which waits for all."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def patient(self) -> AbstractContextManager[None]:
        """Agree with ranks that take their time, as one that checks a million images: only their end is noticed."""

    def behind_rank_0(self) -> AbstractContextManager[None]:
        """Run a context on rank 0 first, which may wait for a disk however slow it is, and then on the others.

        A process that hangs as a whole counts as lost after the timeout. Inside, ranks must not agree on anything.
        """

    def begin_all_reduce(self, tensor: Tensor) -> Transfer:
        """Begin to sum a contiguous tensor over the ranks, in place."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite a contiguous tensor with that of another rank."""

    def begin_broadcast(self, tensor: Tensor, source: int) -> Transfer:
        """Begin to overwrite a contiguous tensor with that of a rank; sums may begin in any order between copies."""

    def move(self, tensor: Tensor, source: int, target: int) -> None:
        """Overwrite a contiguous tensor of one rank with that of another; it is nothing to the rest."""

    def all_reduce_max(self, values: Sequence[int]) -> list[int]:
        """Return the highest that any rank gives, of each of a few integers."""

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return what every rank gives, as JSON, by rank."""

    def broadcast_object(self, value: Any) -> Any:
        """Return what rank 0 gives, as JSON."""


class Alone:
    """One process, which waits for no other."""

    rank, size = 0, 1

    def patient(self) -> AbstractContextManager[None]:
        return nullcontext()

    def behind_rank_0(self) -> AbstractContextManager[None]:
        return nullcontext()

    def begin_all_reduce(self, tensor: Tensor) -> Transfer:
        return NotSent()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        pass

    def begin_broadcast(self, tensor: Tensor, source: int) -> Transfer:
        return NotSent()

    def move(self, tensor: Tensor, source: int, target: int) -> None:
        pass

    def all_reduce_max(self, values: Sequence[int]) -> list[int]:
        return list(values)

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]

    def broadcast_object(self, value: Any) -> Any:
        return value


ALONE = Alone()


class Group:
    """Several processes, through torch.distributed."""

    def __init__(self, backend: str, timeout: timedelta) -> None:
        """Initialize the process group, from the variables that torchrun sets."""
        store, self.rank, self.size = next(rendezvous("env://", timeout=timeout))
        _kept[:] = [store]
        # A store of torchrun's outlives the processes that it restarts, whose addresses are still there.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"bimkern attempt {attempt}, run {next(_runs)}", store)
        options: Any = {"store": self._store, "rank": self.rank, "world_size": self.size}
        dist.init_process_group(backend, timeout=timeout, **options)
        self._copying = dist.new_group(timeout=timeout)
        self.timeout, self._meshes = timeout, list[DeviceMesh]()
        self._agreeing = dist.new_group(backend="gloo", timeout=timeout)
        self._patient = dist.new_group(backend="gloo", timeout=timeout)  # as long as ranks connect
        _set_patient(self._patient)

    def close(self) -> None:
        """Leave the process group, and end its threads.

        They end with the last reference to it. A thread of gloo that still frees a tensor while the interpreter shuts
        down would abort the process.
        """
        dist.destroy_process_group()
        for mesh in self._meshes:  # which caches of torch keep
            getattr(mesh, "_pg_registry", {}).clear()
        del self._copying, self._agreeing, self._patient
        gc.collect()  # cycles that have it, as those of torch's sharded layers

    def mesh(self, device: str) -> DeviceMesh:
        """Return the ranks as a mesh of a type of device, with a connection of its own; all ranks call this at once."""
        self._meshes.append(DeviceMesh.from_group(dist.new_group(timeout=self.timeout), device))
        return self._meshes[-1]

    @contextmanager
    def patient(self) -> Iterator[None]:
        impatient, self._agreeing = self._agreeing, self._patient
        try:
            yield
        finally:
            self._agreeing = impatient

    @contextmanager
    def behind_rank_0(self) -> Iterator[None]:
        if self.rank:
            while not self._beat():
                pass
            yield
            return
        left = threading.Event()
        interval = min(self.timeout.total_seconds() / 4, _BEAT)

        def beat() -> None:
            with suppress(RankLost):  # as the last one finds out, too
                while not left.wait(interval):
                    self._beat()

        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            try:
                yield
            finally:
                left.set()
                beating.join()
        except Exception:  # which the caller may catch
            with suppress(RankLost):  # what failed says more
                self._beat(left=True)
            raise
        self._beat(left=True)

    def _beat(self, *, left: bool = False) -> bool:
        """Have rank 0 say whether it has left a context, and the others hear it."""
        said = torch.tensor([left], dtype=torch.uint8)
        with lost():
            dist.broadcast(said, src=0, group=self._agreeing)
        return bool(said)

    def begin_all_reduce(self, tensor: Tensor) -> Transfer:
        return begun(tensor, lambda: dist.all_reduce(tensor, async_op=True))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        with lost():
            dist.all_reduce(total, group=None if tensor.is_cuda else self._agreeing)
        return total

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        with lost():
            dist.broadcast(tensor, src=source)

    def begin_broadcast(self, tensor: Tensor, source: int) -> Transfer:
        return begun(tensor, lambda: dist.broadcast(tensor, src=source, group=self._copying, async_op=True))

    def move(self, tensor: Tensor, source: int, target: int) -> None:
        with lost():
            if self.rank == source:
                dist.send(tensor, target)
            elif self.rank == target:
                dist.recv(tensor, source)

    def all_reduce_max(self, values: Sequence[int]) -> list[int]:
        return self.begin_all_reduce_max(values)()

    def begin_all_reduce_max(self, values: Sequence[int]) -> Callable[[], list[int]]:
        """Begin what all_reduce_max() does; return what waits for its result."""
        found = torch.tensor(values, dtype=torch.int64)
        with lost():
            work = dist.all_reduce(found, dist.ReduceOp.MAX, group=self._agreeing, async_op=True)

        def result() -> list[int]:
            with lost():
                work.wait()
            return found.tolist()

        return result

    def all_gather_object(self, value: Any) -> list[Any]:
        text = _encoded(value)
        (longest,) = self.all_reduce_max([len(text)])
        padded = torch.nn.functional.pad(text, (0, longest - len(text)), value=ord(" "))
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with lost():
            dist.all_gather(found, padded, group=self._agreeing)
        return [_decoded(one) for one in found]

    def broadcast_object(self, value: Any) -> Any:
        text = _encoded(value if self.rank == 0 else None)
        (length,) = self.all_reduce_max([len(text) if self.rank == 0 else 0])
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
        asking.join(min(self.timeout.total_seconds(), ANSWER))  # a rank that hangs keeps a store that never answers
        first = found[0] if found else own
        return first == own, int(first.split()[1])


def _set_patient(group: dist.ProcessGroup) -> None:
    """Let ranks wait on a group as long as they have to: only the end of one is noticed.

    The timeout that a group is made with also limits how long its ranks connect, so it is raised once they have. Torch
    has no public function for this.

    Raises:
        RanksError: this torch has none at all.
    """
    set_timeout = getattr(distributed_c10d, "_set_pg_timeout", None)
    if set_timeout is None:
        raise RanksError(
            f"torch {torch.__version__} cannot change the timeout of a process group (_set_pg_timeout is gone), which "
            f"several ranks need; install a torch of 2.11 to 2.15, or train in one process"
        )
    set_timeout(PATIENCE, group)


def _encoded(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())
