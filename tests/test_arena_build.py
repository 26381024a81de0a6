"""Where the arena's compiled module comes from: the package, another torch's, or a build on first use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bimkern import arena
from bimkern.arena import ArenaUnavailable, _native, build

ROOT = Path(__file__).resolve().parent.parent
ONE_STEP = """
import torch
from bimkern.arena import Arena, _native
arena = Arena()
for _ in range(3):
    with arena.scope("work"):
        torch.ones(1000).exp()
print(arena.stats().planned > 0, _native.native().__file__)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def module():
    return Path(_native.native().__file__)


@pytest.fixture
def nothing_built(module, tmp_path, cache, monkeypatch):
    """A package without a module; what was found before is found again afterwards."""
    monkeypatch.setattr(_native, "_PACKAGE", tmp_path)
    monkeypatch.setattr(_native, "_found", _native._found.__wrapped__)
    return tmp_path


def test_a_module_of_the_same_release_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.77.0+cu999")
    path = tmp_path / build.module_name()
    assert ".torch2.77." in path.name
    path.touch()
    monkeypatch.setattr(torch, "__version__", "2.77.3")
    assert _native._locate(tmp_path) == path


def test_a_module_of_another_release_is_taken_if_it_passes_its_self_test(nothing_built, module, caplog):
    path = nothing_built / build.module_name(release="1.0")
    shutil.copy(module, path)
    assert _native._locate(nothing_built) == path
    (message,) = caplog.messages
    assert message.startswith(
        f"the arena {path.name} is for another torch than {torch.__version__}, and passed its self"
    )
    assert message.endswith("'python -m bimkern.arena.build' builds it for this torch and this Python")


def test_a_module_that_fails_its_self_test_is_not_used(nothing_built, monkeypatch):
    (nothing_built / build.module_name(release="1.0")).write_bytes(b"not a library")
    monkeypatch.setattr(build, "build", lambda: nothing_built / "built")
    assert _native._locate(nothing_built) == nothing_built / "built"


def test_a_self_test_that_hangs_has_failed(module, monkeypatch):
    monkeypatch.setattr(_native, "_SELF_TEST_S", 0.01)
    assert not _native.passes_self_test(module)


@pytest.mark.parametrize(
    ("programs", "missing"),
    [
        ((), r"install CMake \(pip install cmake ninja\)"),
        (("cmake",), r"install a C\+\+ compiler \(Debian and Ubuntu: apt install g\+\+\)"),
        (("cmake", "c++"), r"install Python's headers \(Debian and Ubuntu: apt install python3-dev\)"),
    ],
)
def test_what_a_build_lacks_is_the_reason(nothing_built, monkeypatch, programs, missing):
    found = {name: str(nothing_built / name) for name in programs}
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: found.get(name))
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(nothing_built))
    expected = (
        rf"the arena was not built for torch \S+ and this Python, and cannot be: {missing} and run 'python -m bimkern"
    )
    with pytest.raises(ArenaUnavailable, match=expected):
        arena.Arena()
    assert missing.replace("\\", "") in arena.unusable()


def test_a_cache_that_cannot_be_written_is_the_reason(nothing_built, monkeypatch):
    (nothing_built / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(nothing_built / "file"))
    with pytest.raises(ArenaUnavailable, match=r"cannot be written .*; set XDG_CACHE_HOME to a folder that can"):
        arena.Arena()


def test_a_build_that_fails_is_not_tried_by_every_run(nothing_built, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "false")
    reason = r"the arena could not be built \(\S+\.log says why\); 'python -m bimkern.arena.build' builds it"
    with pytest.raises(ArenaUnavailable, match=reason):
        build.build()
    monkeypatch.setattr(build, "_run", lambda *_: pytest.fail("it was tried again"))
    with pytest.raises(ArenaUnavailable, match=reason):
        build.build()
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nothing_built / "cache"))
    with pytest.raises(SystemExit, match=reason):
        build.main()
    assert "The C++ compiler" in capsys.readouterr().out


def test_without_sources_there_is_nothing_to_build(nothing_built, monkeypatch):
    monkeypatch.setattr(build, "__file__", str(nothing_built / "bimkern" / "arena" / "build.py"))
    build._digest.cache_clear()
    assert (
        arena.unusable() == "the arena was not built, and this installation has no sources of it: install bimkern again"
    )


def test_what_a_wheel_has_is_built_once_for_all_processes(tmp_path, cache):
    """The sources as CMake installs them into a wheel, and two processes that want the module at the same time."""
    folder, site = tmp_path / "build", tmp_path / "site"
    configure = ["cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}", "-DBIMKERN_CUDA=OFF"]
    for command in (configure, ["cmake", "--install", folder, "--prefix", site, "--component", "source"]):
        subprocess.run(command, check=True, capture_output=True)
    own = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "bimkern", site / "bimkern", ignore=own, dirs_exist_ok=True)
    # Unoptimised, since that is quicker.
    environment = os.environ | {"CMAKE_BUILD_TYPE": "None", "BIMKERN_CUDA_ARCHS": "", "PYTHONPATH": str(site)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", ONE_STEP], cwd=site, env=environment, **pipes) for _ in range(2)]
    told = [process.communicate() for process in both]
    (module,) = cache.rglob("*.so")
    assert [out.split() for out, _ in told] == [["True", str(module)]] * 2, told
    assert sum(err.count("building the arena for torch") for _, err in told) == 1
