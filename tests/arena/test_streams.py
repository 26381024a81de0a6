"""An arena on a GPU: streams, threads, what torch reports; in a process of their own, as test_arena.py says."""

import os

import pytest
import torch

from bimkern.arena import Arena, ArenaError, held_bytes
from bimkern.train.memory.live_bytes import held_bytes as held_by_the_run

FLOATS = 2**20
STEPS = 8

pytestmark = pytest.mark.skipif(os.environ.get("BIMKERN_TEST_GPU_ARENA") != "1", reason="wants a process of its own")


@pytest.fixture
def cuda(gpu):
    return gpu


def slow(stream):
    """Give a stream some milliseconds of work."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)


def test_a_lent_block_is_not_written_to_before_the_other_stream_has_read_it(cuda):
    arena, side, sums = Arena(cuda), torch.cuda.Stream(cuda), []
    for i in range(STEPS):
        with arena.scope("work"):
            lent = torch.full((FLOATS,), float(i), device=cuda)
            side.wait_stream(torch.cuda.current_stream(cuda))
            slow(side)
            with torch.cuda.stream(side):
                sums.append(lent.sum())
            lent.record_stream(side)
            del lent
            torch.full((FLOATS,), -1.0, device=cuda)  # has its place
    torch.cuda.synchronize()
    assert [value.item() for value in sums] == [float(i * FLOATS) for i in range(STEPS)]
    assert arena.stats().plans == 1
    assert arena.stats().upstream_calls_last_step == 0


def test_debug_mode_names_a_stream_that_was_not_recorded(cuda):
    arena, side = Arena(cuda, debug=True), torch.cuda.Stream(cuda)

    def step(*, stray):
        with arena.scope("work"):
            block = torch.ones(FLOATS, device=cuda)
            with torch.cuda.stream(side if stray else torch.cuda.current_stream(cuda)):
                del block

    step(stray=False)
    expected = (
        f"a block of {4 * FLOATS} bytes, allocation 0 of scope 'work' was let go on a stream that was not recorded"
    )
    with pytest.raises(ArenaError, match=expected) as error:
        step(stray=True)
    assert error.value.fault == "hand_off"
    assert arena.stats().strayed == 1
    step(stray=False)


def test_debug_mode_finds_a_write_behind_the_end(cuda):
    arena = Arena(cuda, debug=True)
    expected = "something wrote behind a block of 400 bytes, allocation 0 of scope 'work'"
    with pytest.raises(ArenaError, match=expected), arena.scope("work"):
        write_behind(torch.ones(100, device=cuda))
    with arena.scope("work"):
        pass


def write_behind(block):
    """Set the four bytes behind a tensor to 0, whoever they belong to."""
    address = block.data_ptr() + block.nbytes

    class Claimed:
        __cuda_array_interface__ = {"shape": (1,), "typestr": "<f4", "data": (address, False), "version": 2}  # noqa: RUF012

    torch.as_tensor(Claimed(), device="cuda").zero_()


def test_other_streams_are_served_by_the_pool(cuda):
    arena, side = Arena(cuda), torch.cuda.Stream(cuda)
    with arena.scope("work"):
        before = arena.stats()
        with torch.cuda.stream(side):
            elsewhere = torch.ones(FLOATS, device=cuda)
        after = arena.stats()
    assert after.live_blocks == before.live_blocks
    assert after.elsewhere_bytes - before.elsewhere_bytes == elsewhere.nbytes


def test_scopes_belong_to_one_stream(cuda):
    arena, side = Arena(cuda), torch.cuda.Stream(cuda)
    with arena.scope("work"):
        pass
    expected = "open must come from the thread or stream that opened the first scope"
    with torch.cuda.stream(side), pytest.raises(ArenaError, match=expected) as error:
        arena.scope("work").__enter__()
    assert error.value.fault == "wrong_owner"


def test_backward_runs_on_another_thread_and_is_planned(cuda):
    arena = Arena(cuda)
    weight = torch.ones(1024, 1024, device=cuda, requires_grad=True)
    for _ in range(STEPS):
        with arena.scope("work"):
            ((weight * 2).relu() @ weight).sum().backward()
            weight.grad = None
    stats = arena.stats()
    assert (stats.plans, stats.diverged_steps, stats.elsewhere) == (1, 0, 0)
    assert stats.upstream_calls_last_step == 0


def test_held_bytes_are_the_arenas(cuda):
    Arena(cuda)
    now, peak = held_bytes(cuda)
    held = torch.empty(FLOATS, device=cuda)
    assert held_by_the_run(cuda) == (now + held.nbytes, max(peak, now + held.nbytes))
    del held
    assert held_bytes(cuda)[0] == now


def test_without_memory_torch_says_so(cuda):
    Arena(cuda)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory on GPU 0: arena: no memory for"):
        torch.empty(2**44, dtype=torch.uint8, device=cuda)
    assert torch.ones(FLOATS, device=cuda).sum().item() == FLOATS
