"""Ranks that torchrun started are connected; where one fails, its error is shown once, and all end."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from datetime import timedelta

import torch.distributed as dist

from bimkern.distributed.launch import RanksError, env_rank, world_size
from bimkern.distributed.ranks import ALONE, ANSWER, Group, Ranks
from bimkern.distributed.transfers import RankLost
from bimkern.errors import BimkernError

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of torchrun, beside WORLD_SIZE


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
        group = _connect("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout)
    except (RuntimeError, ValueError, TimeoutError) as error:
        if dist.is_initialized() and not isinstance(error, TimeoutError):  # one of the further connections was refused
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
        group.close()


def _connect(backend: str, timeout: float) -> Group:
    """Connect the ranks, in a thread: torch waits for ever for the store of a rank that hangs.

    Raises:
        TimeoutError: it takes longer than ranks that answer can: they may come late, and then connect slowly.
    """
    group = Future[Group]()

    def connect() -> None:
        try:
            group.set_result(Group(backend, timedelta(seconds=timeout)))
        except BaseException as error:
            group.set_exception(error)

    threading.Thread(target=connect, name="bimkern ranks", daemon=True).start()
    try:
        return group.result(2 * timeout + ANSWER)
    except TimeoutError:
        raise TimeoutError("a rank hangs") from None


def _exit_code(error: BaseException) -> int:
    """Return what a command ends with that an error of another kind than ours, or a signal, has ended."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return int(getattr(error, "exit_code", 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Print nothing that rank 0 prints too."""
    with _without_warnings("bimkern.train"), redirect_stdout(None):
        yield


def warned_once(logger: str) -> AbstractContextManager[None]:
    """Have rank 0 alone log what every rank finds in the same data."""
    return _without_warnings(logger) if env_rank() else nullcontext()


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
