"""Steps as graphs compute, bit for bit, what they compute without; simulated on a CPU, real on a GPU.

On a GPU in a process that leaves it all memory there: BIMKERN_TEST_GPU_ARENA=1 python -m pytest
tests/train/test_graphs.py -k cuda.
"""

import gc
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from simulated_graphs import SimulatedGraphs

from bimkern.arena import install
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import ConfigError
from bimkern.train.graphs import choose, device, fixed
from bimkern.train.graphs.device import CudaGraph, CudaGraphs
from bimkern.train.graphs.steps import EagerSteps, GraphedSteps
from bimkern.train.memory.allocator import PlannedMemory
from bimkern.train.network import set_compute
from bimkern.train.optim.group import GroupOptimizer

CAPTURED = 4  # the first step that is for good, of those that are alike: two pass, two are captured to plan
STEPS = CAPTURED + 5
PASSES = 4  # of a head in a step: two micro-batches in two slices


@dataclass
class Counted:
    """CUDA's graphs, which tell what was done to them."""

    graphs: CudaGraphs

    def __post_init__(self):
        self.events = []

    def stream(self):
        return self.graphs.stream()

    def graph(self):
        self.events.append("captured")
        graph = self.graphs.graph()
        replay = graph.replay
        graph.replay = lambda: (self.events.append("replayed"), replay())
        return graph

    taken = SimulatedGraphs.taken


@pytest.fixture
def graphs(arena_device):
    if arena_device.type == "cpu":
        return SimulatedGraphs()
    install(arena_device)
    return Counted(CudaGraphs(arena_device))


def train(place, graphs, recipe="bim_vit_test", *, sizes=(2, 1), steps=STEPS, options=None, scaled=False, recompute=""):
    """Train as a run does; return losses, weights and optimizer state, and what graphs did in every step."""
    torch.manual_seed(0)
    model = MIM(RECIPES[recipe].config.method).to(place)
    model.recompute = recompute or model.recompute
    set_compute(model, torch.float16 if scaled else torch.float32)
    memory, planned, flow = PlannedMemory(place), GraphedSteps(graphs) if graphs else EagerSteps(), model.method.flow
    updates = [
        GroupOptimizer(name, parameters, AdamWConfig(), device=place, fp16=scaled)
        for name, parameters in flow.partition(model).items()
    ]
    losses, done = [], []
    for index in range(steps):
        chosen = (options or {}).get(index, {})
        for update in updates:
            update.set_rates(lambda group, index=index: 1e-3 * (1 + index % 3))
            if "loss_scale" in chosen:
                update.load_scaler_state(update.scaler_state() | {"scale": chosen["loss_scale"]})
        with planned.stream():
            batches = micro_batches(model, place, index, chosen.get("sizes", sizes))
            frozen = chosen.get("frozen_groups", 0)
            batches, given = planned.prepare(batches, memory, ("work", frozen))
            given |= {"frozen_groups": frozen, "slices": 2}
            losses.append(flow.step(model, batches, updates, StepOptions(**given)).tolist())
        if memory.arena is not None:
            assert memory.arena.stats().planned_bytes == 0
        done.append(graphs.taken() if graphs else [])
    state = {name: value.clone() for update in updates for name, value in update.tensors()}
    for update in updates:
        state |= {f"{update.name}/skipped": update.skipped, f"{update.name}/scale": update.scale(torch.ones(1))}
    return losses, state | model.state_dict(), done, memory


def micro_batches(model, place, index, sizes):
    generator, batches = torch.Generator().manual_seed(index), []
    for number, size in enumerate(sizes):
        images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator).to(place)
        ids = torch.arange(size) + 100 * index + 10 * number
        batches.append(MicroBatch(images, model.views(images, ids, 0)))
    return batches


def assert_same(ours, plain):
    torch.testing.assert_close(ours[0], plain[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours[1], plain[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recipe", "given", "parts"),
    [
        ("bim_vit_test", {"recompute": "layers"}, 4),
        ("bim_vit_test_growing", {"scaled": True}, 4),
        ("mae_vit_test", {}, 1),
    ],
)
def test_replayed_steps_compute_the_same(arena_device, graphs, recipe, given, parts):
    plain = train(arena_device, None, recipe, **given)
    ours = train(arena_device, graphs, recipe, **given)
    captured = [["captured"] * parts] * 2 + [["captured", "replayed"] * parts]
    assert ours[2] == [[], [], *captured, *[["replayed"] * parts] * 4]
    assert_same(ours, plain)
    stats, record = ours[3].arena.stats(), ours[3].record()
    assert (stats.plans, stats.diverged_steps, record["upstream_calls"]) == (1, 0, 1)  # for the memory of the plan
    assert record["planned_peak_bytes"] == record["planned_bytes"] > 0


def test_replayed_steps_take_the_loss_scale_of_their_step(arena_device, graphs):
    """A scale that is too large is halved, and its update skipped, outside of what was captured."""
    options = {CAPTURED + 1: {"loss_scale": 2.0**100}}
    plain, ours = (train(arena_device, one, options=options, scaled=True) for one in (None, graphs))
    assert ours[2][CAPTURED + 1 :] == [["replayed"] * 4] * 4
    assert_same(ours, plain)
    assert ours[1]["stage 1/skipped"] >= STEPS - CAPTURED - 1
    assert ours[1]["stage 1/scale"] <= 2.0**96


def test_other_shapes_run_without_graphs_and_the_graphs_stay(arena_device, graphs):
    steps = CAPTURED + 6
    options = {CAPTURED + 2: {"sizes": (2,)}, CAPTURED + 4: {"sizes": (1, 1)}}
    plain, ours = (train(arena_device, one, steps=steps, options=options) for one in (None, graphs))
    assert [len(events) for events in ours[2][CAPTURED + 1 :]] == [4, 0, 4, 0, 4]
    assert_same(ours, plain)
    assert ours[3].arena.stats().plans == 1


def test_shapes_that_last_are_captured(arena_device, graphs):
    change = CAPTURED + 2
    steps = change + 1 + CAPTURED + 2
    options = {index: {"sizes": (3, 1)} for index in range(change, steps)}
    plain, ours = (train(arena_device, one, steps=steps, options=options) for one in (None, graphs))
    assert [len(events) for events in ours[2]] == [0, 0, 4, 4, 8, 4, 0, 0, 0, 4, 4, 8, 4]
    assert_same(ours, plain)


def test_other_work_is_captured_again(arena_device, graphs):
    """Frozen layers have no gradients, and their stage makes no update."""
    change = CAPTURED + 2
    options = {index: {"frozen_groups": 4} for index in range(change, 2 * change)}
    plain, ours = (train(arena_device, one, steps=2 * change, options=options) for one in (None, graphs))
    assert [len(events) for events in ours[2]] == 2 * [0, 0, 4, 4, 8, 4]
    assert_same(ours, plain)


@pytest.mark.parametrize(
    ("first", "holds", "reason"),
    [
        (3, False, "the plan did not serve stage1 while it was captured"),
        (1, True, "something of stage1 leaked from its capture"),
    ],
)
def test_a_capture_that_cannot_be_replayed_is_given_up(monkeypatch, caplog, first, holds, reason):
    graphs, cpu, held, count = SimulatedGraphs(), torch.device("cpu"), [], iter(range(1, 100))
    plain = train(cpu, None)
    scale = GroupOptimizer.scale

    def allocating(update, loss):
        if graphs.capturing and update.name == "stage 2" and next(count) > PASSES * (first - 1):
            held.append(torch.empty(1000) if holds else torch.empty(1000).shape)
        return scale(update, loss)

    monkeypatch.setattr(GroupOptimizer, "scale", allocating)
    graphed = train(cpu, graphs)
    given_up = ["captured", "captured"] if first == 1 else ["captured", "replayed", "captured"]
    assert graphed[2][first + 1 :] == [given_up, *[[]] * (STEPS - first - 2)]
    assert_same(graphed, plain)
    (message,) = [message for message in caplog.messages if "graphs" in message]
    assert message == f"--cuda-graphs: {reason}; such steps run without graphs"


def test_what_kernels_allocate_in_a_capture_alone_is_planned(monkeypatch):
    graphs, cpu, scale = SimulatedGraphs(), torch.device("cpu"), GroupOptimizer.scale

    def allocating(update, loss):
        return scale(update, loss + torch.zeros(1000 if graphs.capturing else 10).sum())

    monkeypatch.setattr(GroupOptimizer, "scale", allocating)
    plain, ours = (train(cpu, one) for one in (None, graphs))
    assert ours[2][CAPTURED:] == [["captured", "replayed"] * 4, *[["replayed"] * 4] * 4]
    assert_same(ours, plain)


def test_without_memory_for_the_plan_steps_run_without_graphs(caplog):
    class Refusing(PlannedMemory):
        """Memory whose plans would be too large."""

        @property
        def arena(self):
            found = super().arena
            return found and SimpleNamespace(scope=found.scope, stats=lambda: replace(found.stats(), refused_plans=1))

    steps, memory = GraphedSteps(SimulatedGraphs()), Refusing(torch.device("cpu"))
    model = MIM(RECIPES["bim_vit_test"].config.method)
    for index in range(CAPTURED + 1):
        _, given = steps.prepare(micro_batches(model, torch.device("cpu"), index, (2,)), memory, "work")
        assert "run" not in given
    assert caplog.messages == [
        "--cuda-graphs: there is no memory for the plan of a captured step; such steps run without graphs"
    ]


def test_what_is_forgotten_is_captured_again():
    graphs, cpu = SimulatedGraphs(), torch.device("cpu")
    steps, memory, model = GraphedSteps(graphs), PlannedMemory(cpu), MIM(RECIPES["mae_vit_test"].config.method)
    (update,) = [
        GroupOptimizer(name, parameters, AdamWConfig(), device=cpu, fp16=False)
        for name, parameters in model.method.flow.partition(model).items()
    ]
    for index in range(CAPTURED + 2):
        if index == CAPTURED + 1:
            steps.forget()
        batches, given = steps.prepare(micro_batches(model, cpu, index, (1,)), memory, "work")
        model.method.flow.step(model, batches, [update], StepOptions(**given))
    assert graphs.taken() == ["captured", "captured", *["captured", "replayed"] * 2]


def test_what_waits_for_the_device_is_named(monkeypatch):
    graphs = SimulatedGraphs()
    scale = GroupOptimizer.scale

    def waiting(update, loss):
        loss.item()
        return scale(update, loss)

    monkeypatch.setattr(GroupOptimizer, "scale", waiting)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing") as error:
        train(torch.device("cpu"), graphs)
    assert error.value.__notes__ == ["--cuda-graphs: stage0 was being captured, which some of its work may not allow"]


@pytest.mark.parametrize("forgotten", ["inputs", "tokens"])
def test_the_simulation_notices_what_is_not_copied(monkeypatch, forgotten):
    """So the tests above could fail."""
    cpu, take = torch.device("cpu"), fixed.Buffers._take

    def stale(buffers, key, tensor):
        is_tokens = isinstance(key, tuple)
        if key in buffers._by_key and is_tokens == (forgotten == "tokens"):
            return buffers._by_key[key]
        return take(buffers, key, tensor)

    plain = train(cpu, None)
    monkeypatch.setattr(fixed.Buffers, "_take", stale)
    ours = train(cpu, SimulatedGraphs())
    assert ours[0] != plain[0]


def test_a_tensor_at_an_address_has_the_same_strides():
    base = torch.arange(24.0).view(4, 6)
    for tensor in (base, base[1:3], base.T, base[:, 2].to(torch.bfloat16)):
        found = fixed.Address.of(tensor).tensor()
        assert (found.data_ptr(), found.stride(), found.dtype) == (tensor.data_ptr(), tensor.stride(), tensor.dtype)
        torch.testing.assert_close(found, tensor, rtol=0, atol=0)
        found.fill_(1)
        assert (tensor == 1).all()


def test_rows_that_images_share_stay_one_row():
    buffers = fixed.Buffers()
    shared = torch.arange(3).expand(4, 3)
    first = buffers._take("mask", shared)
    assert first.stride(0) == 0
    second = buffers._take("mask", torch.arange(3, 6).expand(4, 3))
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == 4 * [[3, 4, 5]]


class _Recorded:
    """A torch.cuda.CUDAGraph that notes its calls."""

    calls = ()

    def __init__(self, *, keep_graph):
        assert keep_graph
        type(self).calls = []

    def capture_begin(self, **options):
        self.calls.append(("begin", options, gc.isenabled()))

    def capture_end(self):
        self.calls.append("end")

    def replay(self):
        self.calls.append("replay")


def test_a_cuda_graph_is_captured_without_garbage_and_ended_after_errors(monkeypatch):
    monkeypatch.setattr(device.torch.cuda, "CUDAGraph", _Recorded)
    graph, begun = CudaGraph(), ("begin", {"capture_error_mode": "thread_local"}, False)
    with graph.capture():
        assert not gc.isenabled()
    graph.replay()
    assert _Recorded.calls == [begun, "end", "replay"]
    with pytest.raises(ValueError, match="broken"), graph.capture():
        raise ValueError("broken")
    assert gc.isenabled()
    assert _Recorded.calls[3:] == [begun, "end"]


def test_steps_run_on_a_stream_of_their_own_behind_and_before_all_else(monkeypatch):
    calls = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append((self.name, "waits for", other.name))

        def __enter__(self):
            calls.append("in")

        def __exit__(self, *error):
            calls.append("out")

    outside = Stream("default")
    monkeypatch.setattr(torch.cuda, "Stream", lambda place: Stream("steps"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: outside)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    graphs = CudaGraphs(torch.device("cuda", 0))
    with pytest.raises(ValueError, match="broken"), graphs.stream():
        raise ValueError("broken")
    assert calls == [("steps", "waits for", "default"), "in", "out", ("default", "waits for", "steps")]


@pytest.mark.parametrize(
    ("changes", "place", "environment", "reason"),
    [
        ({}, "cpu", {}, "needs a GPU, got cpu; leave it out"),
        ({"arena": "auto"}, "cuda", {}, "graphs need the fixed addresses of --arena plan, got auto"),
        ({"compile": True}, "cuda", {}, "what --compile makes was not tried in a graph; use one of them"),
        ({"arena": "plan"}, "cuda", {"WORLD_SIZE": "2"}, "2 ranks exchange gradients within what would be captured"),
    ],
)
def test_what_has_no_graphs_is_refused(monkeypatch, changes, place, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = RECIPES["bim_vit_test"].config.run
    with pytest.raises(ConfigError, match=f"--cuda-graphs: {reason}"):
        choose.check(replace(run, cuda_graphs=True, **changes), torch.device(place))
    assert isinstance(choose.choose(run, torch.device(place)), EagerSteps)
