"""A GPU's memory as the arena's, without a GPU: the functions that torch calls, and every refusal.

tests/csrc/arena/test_device_hook.cpp simulates the device and torch's streams; test_device.cpp tests the core.
"""

import ctypes
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
import torch

from bimkern import arena
from bimkern.arena import Arena, ArenaUnavailable, device, held_bytes, install, unusable
from bimkern.train.memory.live_bytes import held_bytes as held_by_the_run

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda", 0)
OWNER, OTHER = 8, 16  # streams
UNSYNCHRONIZED_FREE = 7  # Fault::kUnsynchronizedFree in csrc/arena/error.h
MISUSED_FREES = {"double": 0, "foreign": 1}  # Fault::kDoubleFree, Fault::kForeignPointer
STEPS = 6

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


class Hook:
    """The library's functions, as torch finds and calls them."""

    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        address, stream, size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t
        self.allocate = ctypes.CFUNCTYPE(address, size, ctypes.c_int, stream)(("bimkern_arena_alloc", library))
        self.free = ctypes.CFUNCTYPE(None, address, size, ctypes.c_int, stream)(("bimkern_arena_free", library))
        self.record_stream = ctypes.CFUNCTYPE(None, address, stream)(("bimkern_arena_record_stream", library))
        for count in (library.simulated_left, library.simulated_planned, library.simulated_waits):
            count.restype = ctypes.c_int64
        library.simulated_memory.argtypes = [ctypes.c_int64]
        library.simulated_stream.argtypes = [ctypes.c_void_p]
        library.simulated_unwind.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        library.simulated_text.restype = ctypes.c_char_p
        self.library = library
        library.simulated_memory(2**30)

    def open(self, number, *, debug=False):
        self.library.simulated_stream(OWNER)
        return self.library.simulated_open(number, b"step", debug)

    def close(self, number):
        return self.library.simulated_close(number, b"step")

    def waits(self):
        found = (ctypes.c_uint64 * 16)()
        count = self.library.simulated_waits(found, len(found))
        return list(zip(found[:count:2], found[1:count:2], strict=True))

    def step(self, number, *, user=None, **options):
        """Make and free two allocations inside a scope; return the arena and their addresses."""
        number, addresses = self.open(number, **options), []
        for size in (1000, 2000):
            addresses.append(self.allocate(size, 0, OWNER))
            if user is not None:
                self.record_stream(addresses[-1], user)
            self.free(addresses[-1], size, 0, OWNER)
        assert self.close(number) == -1
        return number, addresses


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("hook") / "hook.so"
    torch_folder = Path(torch.__file__).parent
    core = [str(file) for file in (ROOT / "csrc/arena").glob("*.cpp") if file.name != "no_cuda_driver.cpp"]
    files = [str(ROOT / "python/device_hook.cpp"), str(ROOT / "tests/csrc/arena/test_device_hook.cpp"), *core]
    flags = ["-std=c++17", "-O0", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'python'}"]
    torchs = [f"-isystem{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10"]
    done = commands.run(["c++", *flags, *files, *torchs, "-o", str(path)])
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def hook(library, tmp_path):
    """A copy each: the library's memory of devices lasts as long as it is loaded."""
    return Hook(shutil.copy(library, tmp_path / "hook.so"))


@needs_compiler
def test_torch_gets_planned_addresses_inside_of_scopes_on_their_stream(hook):
    number, _ = hook.step(-1)
    seen = [hook.step(number)[1] for _ in range(STEPS)]
    assert seen[2] == seen[3] == seen[4] == seen[5]
    assert all(address % 512 == 0 for addresses in seen for address in addresses)
    planned, left = hook.library.simulated_planned(number), hook.library.simulated_left()
    assert planned > 0
    hook.open(number)
    other = hook.allocate(5000, 0, OTHER)
    assert hook.library.simulated_left() == left - 5000
    assert hook.close(number) == -1
    outside = hook.allocate(5000, 0, OWNER)
    for address, stream in ((other, OTHER), (outside, OWNER)):
        hook.free(address, 5000, 0, stream)
    assert hook.library.simulated_left() == left
    assert hook.library.simulated_planned(number) == planned


@needs_compiler
def test_the_owner_waits_for_streams_that_torch_records(hook):
    number, _ = hook.step(-1)
    assert hook.waits() == []
    for _ in range(STEPS):
        hook.step(number, user=OTHER)
        assert hook.waits() == 2 * [(OWNER, OTHER)]
    mine = ctypes.create_string_buffer(8)
    hook.record_stream(ctypes.addressof(mine), OTHER)  # not the allocator's: nothing happens
    assert hook.waits() == []


@needs_compiler
def test_debug_mode_asks_torch_on_which_stream_an_allocation_is_freed(hook):
    number = hook.open(-1, debug=True)
    address = hook.allocate(1000, 0, OWNER)
    hook.library.simulated_stream(OTHER)
    hook.free(address, 1000, 0, OWNER)
    assert hook.close(number) == UNSYNCHRONIZED_FREE
    assert hook.waits() == [(OWNER, OTHER)]
    hook.step(number)


@needs_compiler
@pytest.mark.parametrize("misuse", MISUSED_FREES)
def test_a_misused_free_is_reported_when_the_scope_closes(hook, misuse):
    number, (dead, _) = hook.step(-1)
    for _ in range(STEPS):
        _, (dead, _) = hook.step(number)
    mine = ctypes.create_string_buffer(8)
    hook.open(number)
    address, text = {
        "double": (dead, "which the arena owns but is not live"),
        "foreign": (ctypes.addressof(mine), "which the arena did not allocate"),
    }[misuse]
    for _ in range(2):  # the first is reported
        assert hook.library.simulated_unwind(address, OWNER) == 1
    assert hook.close(number) == MISUSED_FREES[misuse]
    assert hook.library.simulated_text().decode() == f"arena: free of {address:#x}, {text}"
    before = hook.library.simulated_planned(number)
    for _ in range(STEPS):
        hook.step(number)
    assert hook.library.simulated_planned(number) > before


@needs_compiler
def test_a_device_that_has_failed_does_not_end_the_process(hook, capfd):
    number, _ = hook.step(-1)
    for _ in range(STEPS):
        hook.step(number)
    pooled = hook.allocate(3000, 0, OTHER)
    hook.open(number)
    lent = hook.allocate(1000, 0, OWNER)
    hook.record_stream(lent, OTHER)
    hook.library.simulated_broken(1)
    for address, stream in ((lent, OWNER), (pooled, OTHER)):
        assert hook.library.simulated_unwind(address, stream) == 1
    assert hook.close(number) == -1
    other = hook.step(-1)[0]
    for _ in range(STEPS):
        hook.step(other)
    assert hook.library.simulated_planned(other) > 0
    hook.library.simulated_delete(other)  # gives back its regions
    report = "bimkern: memory of a GPU was not freed: arena: cudaEventRecord failed: simulated\n"
    assert capfd.readouterr().err == report  # once


@needs_compiler
def test_an_empty_tensor_has_no_address(hook):
    assert hook.allocate(0, 0, OWNER) is None
    hook.free(None, 0, 0, OWNER)


@needs_compiler
def test_without_memory_torch_gets_its_own_error(library):
    code = (
        f"import ctypes, torch; library = ctypes.CDLL({str(library)!r}); library.simulated_memory(ctypes.c_int64(10)); "
        "library.bimkern_arena_alloc(ctypes.c_ssize_t(1000), 0, None)"
    )
    done = commands.run([sys.executable, "-c", code])
    assert done.returncode != 0  # nothing catches it there
    assert "c10::OutOfMemoryError" in done.stderr
    assert "CUDA out of memory on GPU 0: arena: no memory for 1000 bytes" in done.stderr


@pytest.fixture
def machine(monkeypatch):
    """A torch with CUDA, a GPU and an allocator that can be replaced, as far as `install` can tell."""
    simulated = SimpleNamespace(
        allocator=None, with_cuda=True, visible=True, initialized=False, claimed=[], recorders=[]
    )

    class Allocator:
        def __init__(self, path, allocate, free):
            self.functions = (path, allocate, free)

        def allocator(self):
            return SimpleNamespace(set_record_stream_fn=simulated.recorders.append)

    module = arena._native.native()
    simulated.module = SimpleNamespace(
        with_cuda=True,
        __file__=module.__file__,
        claim_device=simulated.claimed.append,
        device_bytes=lambda index: (100 + index, 200),
        DeviceArena=lambda index, debug: (index, debug),
    )
    monkeypatch.setattr(device, "native", lambda *, may_build=True: simulated.module)
    monkeypatch.setattr("bimkern.arena.arena.native", lambda: simulated.module)
    monkeypatch.setattr(device, "_installed", [])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: simulated.visible)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: simulated.initialized)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda.memory, "CUDAPluggableAllocator", Allocator)
    monkeypatch.setattr(
        torch.cuda.memory, "change_current_allocator", lambda given: setattr(simulated, "allocator", given)
    )
    return simulated


def test_the_first_arena_replaces_torchs_allocator_and_the_others_share_it(machine):
    assert held_bytes(CUDA) is None
    assert Arena("cuda:1", debug=True)._native == (1, True)
    assert machine.claimed == [1]
    path = machine.module.__file__
    assert machine.allocator.functions == (path, "bimkern_arena_alloc", "bimkern_arena_free")
    (recorder,) = machine.recorders
    assert recorder == ctypes.cast(ctypes.CDLL(path).bimkern_arena_record_stream, ctypes.c_void_p).value
    machine.initialized = True
    assert Arena("cuda")._native == (0, False)
    assert len(machine.recorders) == 1
    assert held_bytes(torch.device("cuda")) == (100, 200)
    assert held_by_the_run(torch.device("cuda:1")) == (101, 200)


def test_a_torch_without_cuda_has_no_arena_on_a_gpu(machine, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert unusable("cuda") == "torch was built without CUDA"
    with pytest.raises(ArenaUnavailable, match="torch was built without CUDA"):
        Arena("cuda")


def test_an_arena_without_cuda_is_refused(machine):
    machine.module.with_cuda = False
    assert unusable("cuda") == (
        "the arena was built without CUDA; where there are a GPU and nvcc "
        "'python -m bimkern.arena.build' builds it for this torch and this Python"
    )
    assert unusable("cpu") is None


def test_without_a_gpu_there_is_none(machine):
    machine.visible = False
    assert unusable("cuda") == "torch sees no CUDA device"


def test_an_allocator_in_use_is_not_replaced(machine):
    machine.initialized = True
    assert unusable("cuda") is None  # of itself
    expected = "torch's own allocator is in use already: make the first arena on a GPU before anything else touches one"
    with pytest.raises(ArenaUnavailable, match=expected):
        install(CUDA)
    assert machine.allocator is None


def test_a_gpu_without_a_pool_keeps_torchs_allocator(machine):
    def claim(index):
        raise RuntimeError(f"arena: GPU {index} has no stream-ordered pool")

    machine.module.claim_device = claim
    with pytest.raises(ArenaUnavailable, match=r"^GPU 0 has no stream-ordered pool"):
        install(CUDA)
    assert machine.allocator is None


def test_a_torch_that_takes_no_other_allocator_is_a_reason(machine, monkeypatch):
    def refuse(given):
        raise RuntimeError("Can't swap an already initialized allocator")

    monkeypatch.setattr(torch.cuda.memory, "change_current_allocator", refuse)
    with pytest.raises(ArenaUnavailable, match=r"torch \S+ takes no other allocator: Can't swap an already"):
        install(CUDA)
    assert held_bytes(CUDA) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_compiled_module_says_why_it_has_no_gpu():
    module = arena._native.native()
    expected = "arena: cudaDeviceGetAttribute failed" if module.with_cuda else "this library was built without CUDA"
    with pytest.raises(RuntimeError, match=expected):
        module.claim_device(0)
    with pytest.raises(RuntimeError, match=r"arena: GPU must be in \[0, 128\), got -1"):
        module.claim_device(-1)
