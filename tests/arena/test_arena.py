"""The arena under torch: the promises, on plain tensors and on whole training steps.

Scopes are entered by hand where a test needs to know every allocation. A process that has an arena on a GPU has no
other allocator there, so that these tests want one of their own: BIMKERN_TEST_GPU_ARENA=1 python -m pytest
tests/arena/test_arena.py tests/arena/test_streams.py -k cuda.
"""

import ctypes
import gc
import logging
import threading
from contextlib import contextmanager
from types import FrameType

import pytest
import torch

from bimkern.arena import Arena, ArenaError, leaks
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.group import GroupOptimizer

FLOATS = 1000  # of a small tensor


class Training:
    """Steps of a recipe, with the data_ptr of what they put out."""

    def __init__(self, recipe, device, arena=None):
        torch.manual_seed(0)
        self.device = device
        self.model = MIM(RECIPES[recipe].config.method).to(device)
        self.flow = self.model.method.flow
        self.scope = arena.scope if arena else None
        self.updates = [
            GroupOptimizer(name, parameters, AdamWConfig(), device=device, fp16=False)
            for name, parameters in self.flow.partition(self.model).items()
        ]
        for update in self.updates:
            update.lr = 1e-2
        self.done = 0

    def step(self, *sizes, slices=2):
        generator = torch.Generator().manual_seed(self.done)
        batches = []
        for i, size in enumerate(sizes or (4, 4)):
            images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator).to(self.device)
            ids = torch.arange(size, device=self.device) + 10 * i
            batches.append(MicroBatch(images, self.model.views(images, ids, self.done)))
        self.done += 1
        keywords = {"scope": self.scope} if self.scope else {}
        return self.flow.step(self.model, batches, self.updates, StepOptions(slices=slices, **keywords)).tolist()


@pytest.fixture
def arena(arena_device):
    return Arena(arena_device)


@contextmanager
def planned(arena):
    """Three rounds of the same scope, so that the fourth, the caller's, is replayed."""
    for _ in range(3):
        with arena.scope("work"):
            a = torch.ones(FLOATS, device=arena.device)
            b = a + 1
            del a, b
    with arena.scope("work"):
        yield


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test", "bim_vit_test_growing"])
def test_training_is_the_same_and_allocates_nothing_in_steady_state(recipe, arena):
    plain, training = Training(recipe, arena.device), Training(recipe, arena.device, arena)
    for _ in range(5):
        assert training.step() == plain.step()
    plan, before = arena.plan(), arena.stats()
    for _ in range(4):
        assert training.step() == plain.step()
    for name, parameter in plain.model.state_dict().items():
        assert torch.equal(parameter, training.model.state_dict()[name]), name
    after = arena.stats()
    assert after.plans == 1
    assert after.diverged_steps == after.late == after.still_in_use == after.leaked == 0
    assert after.upstream_calls == before.upstream_calls
    assert after.upstream_calls_last_step == 0
    assert after.planned - before.planned == 4 * len(plan.allocations)
    # planned = measured, to the byte; and close to what no plan can do without
    assert after.planned_reach == after.reserved_bytes == plan.peak
    assert after.fallback_peak == after.fallback_bytes == before.fallback_bytes  # optimizer state, born in step one
    assert plan.bound <= plan.peak <= 1.03 * plan.bound
    assert plan.bound <= after.planned_live_peak <= plan.peak


def test_allocations_have_the_same_addresses_at_every_step(arena):
    training = Training("bim_vit_test", arena.device, arena)
    seen = []
    encode = training.model.encode

    def watched(*args):
        tokens = encode(*args)
        seen.append(tokens.data_ptr())
        return tokens

    training.model.encode = watched
    for _ in range(7):
        training.step()
    size = len(seen) // 7
    steps = [seen[i : i + size] for i in range(0, len(seen), size)]
    assert steps[3] == steps[4] == steps[5] == steps[6]
    assert len(set(steps[3])) > 1


def test_a_smaller_last_batch_changes_nothing(arena):
    plain, training = (Training("bim_vit_test", arena.device, given) for given in (None, arena))
    for sizes in [(4, 4)] * 5 + [(4, 3)] + [(4, 4)] * 3 + [(4, 1)] + [(4, 4)] * 3:
        assert training.step(*sizes) == plain.step(*sizes)
    stats = arena.stats()
    assert stats.plans == 1
    assert stats.diverged_steps == 2
    assert stats.smaller > 0
    assert stats.upstream_calls_last_step == 0


def test_other_work_is_served_by_the_fallback_and_replanned(arena):
    plain, training = (Training("bim_vit_test", arena.device, given) for given in (None, arena))
    for sizes in [(2, 2)] * 4 + [(8, 8)] * 5:
        assert training.step(*sizes) == plain.step(*sizes)
    stats = arena.stats()
    assert stats.plans == 2
    assert stats.diverged_steps == 2
    assert stats.unplanned > 0
    assert stats.upstream_calls_last_step == 0
    assert stats.planned_reach == stats.reserved_bytes == arena.plan().peak


def test_a_dropped_head_needs_no_new_plan(arena):
    def step(stages):
        for stage in range(stages):
            with arena.scope(f"stage{stage}"):
                torch.ones(FLOATS + stage, device=arena.device).sum().item()

    for stages in (3, 3, 3, 3, 2, 2, 2):
        step(stages)
    stats = arena.stats()
    assert stats.plans == 1
    assert stats.diverged_steps == 0
    assert stats.upstream_calls_last_step == 0


def test_tensors_that_outlive_their_scope_and_the_arena_keep_their_bytes(arena_device):
    arena = Arena(arena_device)
    kept = []
    for i in range(8):
        with arena.scope("work"):
            kept.append(torch.full((FLOATS,), float(i), device=arena_device))
            torch.full((FLOATS,), -1.0, device=arena_device).sum().item()
    del arena
    gc.collect()
    for i, tensor in enumerate(kept):
        assert torch.equal(tensor.cpu(), torch.full((FLOATS,), float(i)))


def test_tensors_may_be_freed_by_any_thread(arena):
    for _ in range(6):
        with arena.scope("work"):
            box = [torch.ones(FLOATS, device=arena.device)]
            thread = threading.Thread(target=box.clear, daemon=True)
            thread.start()
            thread.join(60)
    assert arena.stats().live_allocations == 0
    assert arena.stats().plans == 1


def test_other_threads_are_served_by_torch_and_counted():
    arena = Arena()

    def work(results):
        results.append(torch.ones(FLOATS))

    results = []
    with planned(arena):
        before = arena.stats()
        thread = threading.Thread(target=work, args=[results], daemon=True)
        thread.start()
        thread.join(60)
    after = arena.stats()
    assert after.live_allocations == 0
    assert after.other_allocations - before.other_allocations == 1
    assert after.other_bytes - before.other_bytes == 4 * FLOATS


def test_nothing_is_served_outside_of_scopes(arena):
    with planned(arena):
        pass
    before = arena.stats()
    outside = torch.ones(FLOATS, device=arena.device)
    assert arena.stats() == before
    del outside


def test_an_empty_tensor_is_not_the_arenas(arena):
    with planned(arena):
        before = arena.stats().planned
        assert torch.empty(0, device=arena.device).numel() == 0
        assert arena.stats().planned == before


def test_a_tensor_of_the_arena_can_grow(arena):
    with planned(arena):
        tensor = torch.ones(FLOATS, device=arena.device)
        tensor.resize_(3 * FLOATS)
        assert torch.equal(tensor[:FLOATS].cpu(), torch.ones(FLOATS))
    tensor.resize_(5 * FLOATS)
    assert torch.equal(tensor[:FLOATS].cpu(), torch.ones(FLOATS))


def test_a_scope_that_is_left_by_an_exception(arena):
    training = Training("bim_vit_test", arena.device, arena)
    for _ in range(4):
        training.step()
    kept = []
    with pytest.raises(RuntimeError, match="shape"), arena.scope("stage0"):
        kept.append(torch.ones(FLOATS, device=arena.device)) or kept[0].view(3, 5)
    for _ in range(4):
        training.step()
    assert torch.equal(kept[0].cpu(), torch.ones(FLOATS))
    assert arena.stats().plans <= 2  # one more where others need the memory that is kept
    assert arena.stats().upstream_calls_last_step == 0


def test_scopes_do_not_nest(arena):
    with arena.scope("a"):
        with pytest.raises(ArenaError, match="scope 'b' cannot open inside 'a': scopes cannot nest") as error:
            arena.scope("b").__enter__()
        assert error.value.fault == "scope"
        expected = r"scope 'c' cannot open: this (thread|stream) is in a scope of another arena"
        with pytest.raises(ArenaError, match=expected):
            Arena(arena.device).scope("c").__enter__()
    with planned(arena):
        pass
    assert arena.stats().planned > 0


def test_scopes_belong_to_one_thread():
    arena, caught = Arena(), []

    def work():
        try:
            arena.scope("work").__enter__()
        except ArenaError as error:
            caught.append(error)

    with planned(arena):
        pass
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert str(caught[0]) == "arena: open must come from the thread or stream that opened the first scope"
    assert caught[0].fault == "wrong_owner"


def test_there_is_no_plan_before_a_step_was_recorded(arena):
    with pytest.raises(ArenaError, match="plan: no whole step was recorded yet"):
        arena.plan()


def test_a_device_without_an_arena_is_refused():
    with pytest.raises(ValueError, match="Arena: device must be cpu or cuda, got meta"):
        Arena("meta")


def test_debug_mode_poisons_what_is_freed():
    arena = Arena(debug=True)
    with planned(arena):
        a = torch.ones(FLOATS)
        address = a.data_ptr()
        del a
        assert ctypes.string_at(address, 4 * FLOATS) == b"\xff" * 4 * FLOATS  # NaN
        assert torch.ones(FLOATS).data_ptr() != address  # the next one of the plan


def test_debug_mode_names_what_leaked_from_its_scope(arena_device, caplog):
    arena = Arena(arena_device, debug=True)
    caplog.clear()  # the first arena of a process may have been built
    cache = {}
    with caplog.at_level(logging.WARNING, logger="bimkern.arena"), planned(arena):
        forgotten = cache["mask"] = torch.ones(FLOATS, device=arena_device)
    (leak,) = arena.leaks()
    assert (leak.scope, leak.order, leak.bytes) == ("work", 0, 4 * FLOATS)
    function = "test_debug_mode_names_what_leaked_from_its_scope"
    assert leak.tensor == f"float32 [1000] referred to as 'forgotten' in {function}, 'mask'"
    assert caplog.messages == [f"allocation 0 of scope 'work' (4000 bytes) leaked: {leak.tensor}"]
    del forgotten, cache["mask"]
    assert arena.stats().live_allocations == 0  # the scan kept no reference


def test_debug_mode_leaves_no_frame_behind(arena_device):
    """A frame in a cycle keeps every caller's variables until a garbage collection, from Python 3.12 on."""
    arena = Arena(arena_device, debug=True)
    gc.collect()
    gc.disable()
    try:
        with planned(arena):
            leaked = torch.ones(FLOATS, device=arena_device)
        frames = [found for found in gc.get_objects() if type(found) is FrameType]
    finally:
        gc.enable()
    assert leaked.sum() == FLOATS
    assert not [frame for frame in frames if frame.f_globals["__name__"] == leaks.__name__]


def write_past(tensor):
    ctypes.memset(tensor.data_ptr() + tensor.nbytes, 0, 1)


def test_debug_mode_finds_a_write_past_the_end():
    arena = Arena(debug=True)
    expected = r"write past the end of allocation 0 of scope 'work' \(4000 bytes\)"
    with pytest.raises(ArenaError, match=expected), planned(arena):
        write_past(torch.ones(FLOATS))
    with arena.scope("work"):
        pass


def test_what_debug_mode_finds_does_not_replace_an_error():
    arena = Arena(debug=True)

    def fail():
        write_past(torch.ones(FLOATS))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as error, planned(arena):
        fail()
    found = "arena: write past the end of allocation 0 of scope 'work' (4000 bytes)"
    assert error.value.__notes__ == [found]
    with arena.scope("work"):
        pass
