"""What every test stands on: a device, fresh random numbers, and outputs that start poisoned."""

import contextlib
import faulthandler
import gc
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run beside each other; read when torch is imported
import leftovers
import torch
from caches import empty_cache
from traces import FOLDER, traced_once

from bimkern.arena import ArenaUnavailable, build

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products need it on CUDA


# Garbage is looked for less often, and never among what stays: modules, thousands of tests, what other files of tests
# imported and cached.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish():
    gc.freeze()


def pytest_unconfigure():
    """Let the process end: one that a thread or a child keeps alive would be waited for for ever."""
    faulthandler.dump_traceback_later(60, exit=True)


@pytest.fixture(scope="module", autouse=True)
def what_other_files_left_stays():
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what is cached apart from the user's, but for the arena's module, built before any test wants it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path_factory.mktemp("cache")))
        with contextlib.suppress(ArenaUnavailable):  # the tests of an arena tell why
            build.build()
        yield


@pytest.fixture(scope="session", autouse=True)
def steps_traced_once(tmp_path_factory):
    """Share traces of steps with the other workers, and with ranks that tests start."""
    run = tmp_path_factory.getbasetemp()
    folder = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, traced_once():
        patch.setenv(FOLDER, str(folder))
        yield


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(params=["cuda"])  # named, so that `-k cuda` finds what needs a GPU
def gpu(request):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param, 0)


@pytest.fixture(params=["cpu", "cuda"])
def arena_device(request):
    """Where an arena can be: on a GPU only in a process that leaves it all memory there, as one of its tests does."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if os.environ.get("BIMKERN_TEST_GPU_ARENA") != "1":
            pytest.skip("wants a process of its own: see tests/arena/test_arena.py")
        return torch.device("cuda", 0)
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    leftovers.end_all()


@pytest.fixture(autouse=True)
def deterministic():
    """Deterministic algorithms; torch then also fills every torch.empty with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_random_numbers(request):
    """Other inputs in every run. A failure shows its seed; BIMKERN_TEST_SEED=<seed> repeats it."""
    seed = int(os.environ.get("BIMKERN_TEST_SEED", int.from_bytes(os.urandom(4), "little")))
    torch.manual_seed(seed)
    request.node.add_report_section("setup", "seed", f"BIMKERN_TEST_SEED={seed}")


@pytest.fixture(scope="module")
def without_pictures():
    from undrawn import undrawn  # most tests train nothing

    with undrawn():
        yield


@pytest.fixture
def pictures():
    """Have the runs of a test draw, in a file that uses `pictures_on_request`."""


@pytest.fixture
def pictures_on_request(request):
    from undrawn import undrawn

    with contextlib.nullcontext() if "pictures" in request.fixturenames else undrawn():
        yield


@pytest.fixture(scope="module")
def without_estimates():
    from undrawn import unestimated  # most tests train nothing

    with unestimated():
        yield


@pytest.fixture
def standins(monkeypatch):
    """Make the packages of tests/helpers/standins importable, and forget them afterwards; return their folder."""
    folder = Path(__file__).parent / "helpers" / "standins"
    names = [path.name for path in folder.iterdir()]

    def forget():
        for module in [module for module in sys.modules if module.partition(".")[0] in names]:
            del sys.modules[module]

    forget()
    monkeypatch.syspath_prepend(folder)
    yield folder
    forget()
