"""The replay that is timed on a GPU, with an allocator that only counts."""

from contextlib import contextmanager

import pytest
import torch

from bench import device_replay
from bench.device_replay import Replay
from bimkern.arena import Block, Scope, make_plan

SCOPES = [Scope("a", 0, 6, 0, 3), Scope("b", 7, 10, 3, 4)]
BLOCKS = [Block(0, 100, 1, 2), Block(0, 200, 3, 8), Block(0, 300, 4, None), Block(1, 400, 9, None)]


class Taken:
    def __init__(self, size, log):
        self.size, self.log = size, log
        log.append(size)

    def __del__(self):
        self.log.append(-self.size)


class Counting:
    """An allocator, and the scopes that it is asked in."""

    def __init__(self):
        self.log = []

    def allocate(self, size):
        return Taken(size, self.log)

    @contextmanager
    def scope(self, name):
        self.log.append(name)
        yield
        self.log.append("")


def test_a_step_is_replayed_event_by_event():
    counting = Counting()
    plan = make_plan(SCOPES, BLOCKS, ticks=11, alignment=64)
    replay = Replay(plan, counting.allocate, larger=10)
    replay.step(counting.scope)
    assert counting.log == ["a", 1000, -1000, 2000, 3000, "", "b", -2000, 4000, ""]
    counting.log.clear()
    replay.step(counting.scope)
    assert counting.log == ["a", 1000, -1000, 2000, 3000, -3000, "", "b", -2000, 4000, -4000, ""]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert device_replay.main([]) == 2
    assert capsys.readouterr().err == "bench.device_replay: torch sees no CUDA device\n"
