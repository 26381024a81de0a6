"""Steps in a torch.cuda.MemPool: routing and lifecycle with torch.cuda's calls simulated, the rest on a GPU."""

from contextlib import contextmanager

import pytest
import torch

from bimkern.arena import ArenaUnavailable
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import ConfigError
from bimkern.train.memory import allocator
from bimkern.train.memory.allocator import PlannedMemory, PooledMemory, TorchMemory
from bimkern.train.optim.group import GroupOptimizer

CUDA = torch.device("cuda", 0)
PASSING = 2  # steps of every kind of work


class Simulated(list):
    """What was done, in order; `backend` is that of torch's allocator."""

    backend = "native"


@pytest.fixture
def simulated(monkeypatch):
    calls, count = Simulated(), iter(range(100))

    class MemPool:
        def __init__(self):
            self.number = next(count)
            calls.append(("made", self.number))

        def __del__(self):
            calls.append(("gone", self.number))

        def snapshot(self):
            return [
                {"total_size": 2**21, "allocated_size": 1000},
                {"total_size": 2**25, "allocated_size": 24},
            ]

    @contextmanager
    def use_mem_pool(pool, device):
        calls.append(("in", pool.number, device, torch._C._is_multithreading_enabled()))
        yield
        calls.append(("out", pool.number))

    for name, value in (("MemPool", MemPool), ("use_mem_pool", use_mem_pool)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(("emptied",)))
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: calls.backend)
    return calls


def step(memory, work="work", names=("stage0", "stage1")):
    scope = memory.scope(work)
    for name in names:
        with scope(name):
            pass


def test_every_scope_of_a_step_is_in_the_same_pool_and_its_backward_on_the_calling_thread(simulated):
    memory = PooledMemory(CUDA)
    for _ in range(PASSING):
        step(memory)
    assert simulated == []  # optimizer state is born outside
    step(memory)
    inside = [("in", 0, CUDA, False), ("out", 0)]
    assert simulated == [("emptied",), ("made", 0), *inside, *inside]
    assert torch._C._is_multithreading_enabled()
    step(memory)
    assert simulated[6:] == [*inside, *inside]


def test_other_work_gets_another_pool_when_the_old_one_is_gone(simulated):
    memory = PooledMemory(CUDA)
    for work in ("small", "large"):
        for _ in range(PASSING + 2):
            step(memory, work, names=["step"])
    events = [call[:2] for call in simulated if call[0] in ("made", "gone", "in")]
    assert events == [("made", 0), ("in", 0), ("in", 0), ("gone", 0), ("made", 1), ("in", 1), ("in", 1)]


def test_a_scope_that_is_left_by_an_exception_leaves_the_threads_as_they_were(simulated):
    memory = PooledMemory(CUDA)
    for _ in range(PASSING):
        step(memory)
    with pytest.raises(RuntimeError, match="no memory"), memory.scope("work")("stage0"):
        raise RuntimeError("no memory")
    assert torch._C._is_multithreading_enabled()


def test_the_record_has_the_pools_numbers_and_none_of_a_plans(simulated):
    memory = PooledMemory(CUDA)
    names = set(memory.record())
    assert set(memory.record().values()) == {None}
    for _ in range(PASSING + 1):
        step(memory)
    known = {name: value for name, value in memory.record().items() if value is not None}
    assert known == {"reserved_bytes": 2**21 + 2**25, "allocated_bytes": 1024, "segments": 2}
    assert set(memory.record()) == names == set(TorchMemory().record())
    assert memory.plan() is None


@pytest.mark.usefixtures("simulated")
def test_a_gpu_has_a_pool_by_itself_unless_it_compiles():
    assert isinstance(allocator.choose("auto", CUDA, compiled=False), PooledMemory)
    assert isinstance(allocator.choose("auto", CUDA, compiled=True), TorchMemory)
    assert isinstance(allocator.choose("pool", CUDA, compiled=True), PooledMemory)
    assert isinstance(allocator.choose("off", CUDA, compiled=False), TorchMemory)


def test_another_allocator_of_torchs_has_no_pools(simulated):
    simulated.backend = "cudaMallocAsync"
    assert isinstance(allocator.choose("auto", CUDA, compiled=False), TorchMemory)
    expected = "--arena pool: torch's cudaMallocAsync allocator, which this process uses, has no pools; use off"
    with pytest.raises(ConfigError, match=expected):
        allocator.prepare("pool", CUDA, compiled=False)


def test_a_plan_on_a_gpu_takes_over_before_anything_else_or_says_why_not(monkeypatch):
    taken = []
    monkeypatch.setattr(allocator, "unusable", lambda device_type: None)
    monkeypatch.setattr(allocator, "install", taken.append)
    allocator.prepare("plan", CUDA, compiled=False)
    assert isinstance(allocator.choose("plan", CUDA, compiled=False), PlannedMemory)
    assert taken == [CUDA, CUDA]

    def refuse(device):
        raise ArenaUnavailable(f"torch's own allocator is in use already on {device}")

    monkeypatch.setattr(allocator, "install", refuse)
    with pytest.raises(ConfigError, match="--arena plan: torch's own allocator is in use already on cuda:0"):
        allocator.prepare("plan", CUDA, compiled=False)


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test"])
def test_steps_in_a_pool_compute_the_same_and_reserve_nothing_new(recipe, gpu):
    plain, pooled = (train(recipe, memory) for memory in (TorchMemory(), PooledMemory(gpu)))
    assert [losses for losses, _ in plain] == [losses for losses, _ in pooled]
    reserved = [record["reserved_bytes"] for _, record in pooled[PASSING:]]
    assert reserved[0] > 0
    assert len(set(reserved[1:])) == 1
    # All of a step is in the pool, backward too: nothing of it lives between two steps.
    assert {record["allocated_bytes"] for _, record in pooled[PASSING:]} == {0}


def train(recipe, memory, steps=8):
    """Return losses and memory's record of every step."""
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    model = MIM(RECIPES[recipe].config.method).to(device)
    flow, done = model.method.flow, []
    updates = [
        GroupOptimizer(name, parameters, AdamWConfig(), device=device, fp16=False)
        for name, parameters in flow.partition(model).items()
    ]
    for index in range(steps):
        generator = torch.Generator().manual_seed(index)
        images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
        batch = MicroBatch(images, model.views(images, torch.arange(4, device=device), index))
        losses = flow.step(model, [batch], updates, StepOptions(scope=memory.scope("work")))
        done.append((losses.tolist(), memory.record()))
    return done
