"""Ranks one of which fails, as functions that ranks import."""

import os
import signal
import threading
import time
from contextlib import suppress

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from bimkern.distributed.connect import connected
from bimkern.distributed.launch import RanksError
from bimkern.distributed.transfers import RankLost
from bimkern.pretrain import main
from bimkern.train import training
from bimkern.train.checkpoint import store
from bimkern.train.checkpoint.store import CheckpointError
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.reporting.bottleneck import Prefetcher
from bimkern.train.run_folder.folder import RunFolder


def with_a_mistake(arguments):
    """Run a command; in rank 1 a mistake of ours ends it before the first step."""
    _in_rank_1(lambda: {}["a mistake of ours"])
    main(arguments)


def with_sigterm_before_the_first_step(arguments):
    _in_rank_1(lambda: os.kill(os.getpid(), signal.SIGTERM))
    main(arguments)


def without_memory_for_an_update(arguments):
    if os.environ["RANK"] == "1":
        GroupOptimizer._update_part = lambda update: torch.empty(2**50)
    main(arguments)


def _in_rank_1(fail):
    train = training.train

    def failing(*arguments):
        if os.environ["RANK"] == "1":
            fail()
        return train(*arguments)

    training.train = failing


def losing_rank_0(timeout):
    """Stop rank 0, which keeps the store, like a machine that is gone; return how long rank 1 takes to end."""
    try:
        with connected("cpu", timeout) as ranks:
            ranks.all_reduce_max([0])
            if ranks.rank == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
            began = time.monotonic()
            ranks.all_reduce_max([0])
    except RankLost as error:
        return error.reported, time.monotonic() - began


def stopped_while_connecting(timeout):
    """Stop rank 0, which keeps the store, before rank 1 has its last connection; return what rank 1 says, and when."""

    def before_the_last():
        if os.environ["RANK"] == "0":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        else:
            time.sleep(0.5)

    return _refusal(timeout, before_the_last)


def ended_while_connecting(timeout):
    """End rank 1 before its last connection; return how long rank 0 waits for it, and why it ends."""

    def before_the_last():
        if os.environ["RANK"] == "1":
            os._exit(0)

    return _refusal(timeout, before_the_last)


def _refusal(timeout, before_the_last):
    """Connect, with a call before the last connection; return why that fails, and after how long."""
    connect, begun, began = dist.new_group, [], time.monotonic()

    def new_group(*args, **kwargs):
        begun.append(kwargs)
        if len(begun) == 3:
            before_the_last()
        return connect(*args, **kwargs)

    dist.new_group = new_group
    try:
        with connected("cpu", timeout):
            return None
    except RanksError as error:
        return str(error), time.monotonic() - began


def hanging_while_others_wait_for_its_disk(timeout):
    """Stop rank 0 as a whole where others wait for its disk; return how long rank 1 takes to end."""
    began = time.monotonic()
    try:
        with connected("cpu", timeout) as ranks:
            ranks.all_reduce_max([0])  # so that rank 1 is connected, too
            with ranks.behind_rank_0():
                if ranks.rank == 0:
                    os.kill(os.getpid(), signal.SIGSTOP)
    except RankLost:
        return time.monotonic() - began


def failing_while_others_wait_for_its_disk(timeout):
    """Raise an error that rank 0 catches, where others wait for its disk; return what they then agree on."""
    with connected("cpu", timeout) as ranks:
        with suppress(CheckpointError), ranks.behind_rank_0():
            if ranks.rank == 0:
                raise CheckpointError("no room")
        return ranks.all_reduce_max([ranks.rank])


def without_a_way_to_be_patient(timeout):
    """Connect with a torch that lacks a private function; return what is said."""
    del distributed_c10d._set_pg_timeout
    try:
        with connected("cpu", timeout):
            pass
    except RanksError as error:
        return str(error)


def opening_its_files_slowly(arguments, slow, seconds):
    """Run a command; one rank takes so long to open its folder, to write its config, and to read the first images."""
    if os.environ["RANK"] == f"{slow}":
        for owner, name in ((RunFolder, "open"), (RunFolder, "record"), (Prefetcher, "next")):
            _slow_once(owner, name, seconds)
    main(arguments)


def _slow_once(owner, name, seconds):
    function, left = getattr(owner, name), [seconds]

    def slow(*given, **options):
        if left:
            time.sleep(left.pop())
        return function(*given, **options)

    setattr(owner, name, slow)


def on_a_slow_disk(arguments, seconds):
    """Run a command whose first save takes rank 0 so long."""
    _slow_once(store, "save", seconds)
    main(arguments)
