"""A run keeps to one GPU. CUDA's calls are recorded, so that this is shown without one."""

import threading
from types import SimpleNamespace

import pytest
import torch

from bimkern.train import device as devices
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.checkpoint.pinned_buffer import PinnedBuffer
from bimkern.train.config.run import ConfigError


@pytest.fixture
def cuda(monkeypatch):
    """Pretend that there are two GPUs; return what was asked of them, with the thread that asked."""
    calls = []

    def note(name, result=None):
        def called(*arguments):
            calls.append((name, *arguments))
            return result

        monkeypatch.setattr(torch.cuda, name, called)

    note("device_count", 2)
    note("current_device", 1)
    note("set_device")
    note("current_stream", "the stream")
    note("Event", SimpleNamespace(record=lambda stream: calls.append(("record", stream)), query=lambda: False))
    return calls


@pytest.fixture
def third_of_three(monkeypatch):
    """Be the third of three ranks."""
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)


def test_every_rank_has_a_gpu_of_its_own(cuda, third_of_three, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert devices.claim("cuda") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="--device cuda:1: 3 ranks take one GPU each; use cuda"):
        devices.claim("cuda:1")


def test_more_ranks_than_gpus_are_refused(cuda, third_of_three):
    message = "--device cuda: this machine offers 2 CUDA devices .* more ranks here; choose --nproc-per-node 2"
    with pytest.raises(ConfigError, match=message):
        devices.claim("cuda")


@pytest.mark.parametrize("name", ["cuda:1", "cuda"])
def test_the_device_of_a_run_becomes_the_current_one(cuda, name):
    assert devices.claim(name) == torch.device("cuda", 1)
    assert cuda[-1] == ("set_device", 1)
    assert (("current_device",) in cuda) == (name == "cuda")  # which opens a context: not on another GPU


def test_the_cpu_asks_nothing_of_cuda(cuda):
    assert devices.claim("cpu") == torch.device("cpu")
    assert set(cuda) <= {("device_count",)}


def test_an_event_stands_behind_the_work_of_its_own_device(cuda):
    device = torch.device("cuda", 1)
    edge = devices.StepEdge(device)
    assert not edge.pending()
    edge.mark()
    assert cuda == [("Event",), ("current_stream", device), ("record", "the stream")]
    assert edge.pending()


def test_saves_run_with_the_device_of_their_tensors(monkeypatch, tmp_path):
    entered = []
    monkeypatch.setattr(devices, "current", lambda gpu: entered.append(gpu) or threading.Lock())
    gpu = torch.device("cuda", 1)
    saver = AsyncSaver(tmp_path, every=1)
    saver._start(lambda: entered.append("work"), gpu, "a save")
    saver.wait()
    assert entered == [gpu, "work"]


def tensors():
    return [torch.randn(30, 40).T, torch.ones(7, dtype=torch.bool), torch.tensor(3.0), torch.randn(0, 4).double()]


def test_copies_lie_in_one_buffer_side_by_side():
    memory, given = PinnedBuffer(), tensors()
    copies = memory.copy(given)
    assert all(
        torch.equal(copy, tensor) and copy.dtype == tensor.dtype for copy, tensor in zip(copies, given, strict=True)
    )
    assert all(copy.data_ptr() % copy.element_size() == 0 for copy in copies)
    assert {copy.untyped_storage().data_ptr() for copy in copies} == {copies[0].untyped_storage().data_ptr()}
    assert copies[0].untyped_storage().nbytes() < sum(tensor.nbytes for tensor in given) + 64 * len(given)
    again = memory.copy(tensors())
    assert all(copy is before for copy, before in zip(again, copies, strict=True))


@pytest.mark.parametrize("error", [0, 2])
def test_memory_for_a_gpu_is_pinned_where_it_can_be_and_released(monkeypatch, caplog, error):
    calls = []
    cudart = SimpleNamespace(
        cudaHostRegister=lambda *arguments: calls.append(arguments) or error,
        cudaHostUnregister=lambda *arguments: calls.append(arguments),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    memory = PinnedBuffer()
    buffer = memory._buffer(1000, pinned=True)
    assert calls == [(buffer.data_ptr(), 1000, 1)]
    assert ("cannot be pinned (CUDA error 2)" in caplog.text) == bool(error)
    del memory
    assert calls[1:] == ([] if error else [(buffer.data_ptr(),)])
