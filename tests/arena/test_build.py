"""Where the arena's compiled module comes from: a build on first use, or one that was made for another torch."""

import contextlib
import functools
import os
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import torch

from bimkern import arena, info
from bimkern.arena import ArenaUnavailable, _native, build

ROOT = Path(__file__).resolve().parents[2]
ONE_STEP = """
import torch
from bimkern.arena import Arena, _native
arena = Arena()
for _ in range(3):
    with arena.scope("work"):
        torch.ones(1000).exp()
print(arena.stats().planned > 0, _native.native().__file__)
"""
SOURCES = ("CMakeLists.txt", "csrc/arena/arena.cpp", "csrc/core/simd.h", "csrc/cuda_archs.cmake", "python/rerun.h")
BUILDS = "#!/bin/sh\ntest $1 = -S || touch $2/_arena.so\n"  # a cmake
HOLD_LOCK = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
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
    """A cache without a module; what was found before is found again afterwards."""
    monkeypatch.setattr(_native, "_module", functools.cache(_native._module.__wrapped__))
    return tmp_path


@pytest.fixture
def sources(nothing_built, monkeypatch):
    """An installed package that has sources, a native library and no module: the builds of a test are its own."""
    package = nothing_built / "bimkern"
    (package / "arena").mkdir(parents=True)
    for file in SOURCES:
        (package / "source" / file).parent.mkdir(parents=True, exist_ok=True)
        (package / "source" / file).touch()
    (package / "_native.so").touch()
    monkeypatch.setattr(build, "__file__", str(package / "arena" / "build.py"))
    monkeypatch.setattr(build, "_digest", build._digest.__wrapped__)
    return package / "source"


@pytest.fixture
def compiling(sources, monkeypatch):
    """A cmake that leaves half a module and fails, and the programs that a build looks for."""
    program(sources / "cmake", "#!/bin/sh\ntest $1 = -S || touch $2/_arena.so\necho no space left; exit 1\n")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(sources / name))
    return sources


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def test_a_module_of_the_same_release_is_taken(sources, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.77.0+cpu")
    path = build._target()
    assert ".torch2.77." in path.name
    monkeypatch.setattr(torch, "__version__", "2.77.3+cpu")
    assert build._target() == path


@pytest.mark.parametrize("file", SOURCES)
def test_a_module_of_older_sources_is_not_taken(compiling, file):
    program(compiling / "cmake", BUILDS)
    older = build.build()
    (compiling / file).write_text("changed")
    assert build.would_build()
    newer = build.build()
    assert newer != older
    assert {build.build() for _ in range(2)} == {newer}


@pytest.mark.parametrize("file", ["csrc/arena/.#arena.cpp", "csrc/arena/.arena.cpp.swp", "csrc/core/simd.h~"])
def test_what_an_editor_leaves_beside_sources_is_no_source(sources, file):
    plain = build._target()
    (sources / file).symlink_to("a link to nothing, as a lock of an editor is")
    assert build._target() == plain


@pytest.mark.parametrize("name", ["CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_BUILD_TYPE"])
def test_a_module_of_other_flags_is_not_taken(sources, monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    plain = build._target()
    monkeypatch.setenv(name, "other")
    assert build._target() != plain


def test_every_source_that_the_module_is_compiled_from_decides_which_it_is():
    """By the includes of its sources, those that CMake names for it and for the arena's core."""
    decisive = {path for pattern in build._SOURCES for path in ROOT.glob(pattern)}
    files = [*(ROOT / "csrc" / "arena").glob("*.cpp"), *(ROOT / "csrc" / "arena").glob("*.cu")]
    text = (ROOT / "CMakeLists.txt").read_text()
    module = text[text.index("Python_add_library(") :]
    files += [ROOT / name for name in module[: module.index(")")].split() if name.endswith(".cpp")]
    found = set()
    while files:
        found.add(file := files.pop())
        for name in re.findall('^#include "(.+)"', file.read_text(), flags=re.MULTILINE):
            (path,) = filter(Path.exists, (folder / name for folder in (file.parent, ROOT / "csrc")))
            files += {path} - found
    assert ROOT / "csrc" / "core" / "common.h" in found
    assert found <= decisive


def test_a_module_that_cannot_be_loaded_is_a_reason(sources):
    path = build._target()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a library")
    assert re.fullmatch(rf"the arena cannot be loaded: .*{path.name}: .*; {build.REMEDY}", arena.unusable())


def test_what_was_built_is_taken_from_a_cache_that_cannot_be_written(sources, monkeypatch):
    path = build._target()
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(build, "FileLock", lambda *_, **__: pytest.fail("a lock is a file"))
    assert build.build() == path


def test_where_none_can_be_built_one_for_another_torch_is_taken_if_it_passes_its_self_test(
    compiling, module, monkeypatch, caplog
):
    path = build._target().with_name(build.module_name(release="1.0"))
    path.parent.mkdir(parents=True)
    shutil.copy(module, path)
    monkeypatch.setattr(_native, "load", lambda path: path)  # a process loads one
    assert _native.native() == path
    message = caplog.messages[-1]
    assert message.startswith(f"the arena {path} is for another torch, and passed its self-test; the arena could not ")
    assert message.endswith("'python -m bimkern.arena.build' builds it for this torch and this Python")
    assert arena.unusable(may_build=False) is None


def test_a_module_that_crashes_in_its_self_test_is_not_used(compiling, monkeypatch):
    monkeypatch.setattr(build.sysconfig, "get_config_var", lambda name: ".py")
    path = build._target().with_name(build.module_name(release="1.0"))
    path.parent.mkdir(parents=True)
    path.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert list(build.for_other_torches()) == [path]
    assert "could not be built" in arena.unusable()


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


REASON = r"the arena could not be built \(\S+\.log says why\); 'python -m bimkern.arena.build' builds it"


def test_a_build_that_fails_is_not_tried_by_every_run(nothing_built, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(ArenaUnavailable, match=REASON):
        build.build()
    with monkeypatch.context() as context:
        context.setattr(build, "_run", lambda *_: pytest.fail("it was tried again"))
        with pytest.raises(ArenaUnavailable, match=REASON):
            build.build()
    with pytest.raises(SystemExit, match=REASON):
        build.main()
    assert "The C++ compiler" in capsys.readouterr().out


def test_a_program_that_cannot_be_run_is_in_the_log_as_is_what_is_no_text(compiling, capsys):
    program(compiling / "cmake", "#!/gone/python\n")
    with pytest.raises(SystemExit, match=REASON):
        build.main()
    assert "cmake, or what its first line names, cannot be run (No such file or directory)" in capsys.readouterr().out
    program(compiling / "cmake", "#!/bin/sh\nprintf 'caf\\351.cpp: error'; exit 1\n")
    with pytest.raises(SystemExit, match=REASON):
        build.main()
    assert "caf\\xe9.cpp: error" in capsys.readouterr().out


def test_a_build_that_has_failed_long_ago_is_tried_once_more(compiling):
    for _ in range(2):
        with pytest.raises(build.BuildFailed) as failed:
            build.build()
    log = failed.value.log
    assert log.read_text() == "no space left\n"
    program(compiling / "cmake", BUILDS)
    hour_ago = log.stat().st_mtime - build._RETRY_S
    os.utime(log, (hour_ago, hour_ago))
    assert build.build().exists()
    assert not log.exists()


def test_a_build_without_an_end_is_ended_with_all_its_processes(compiling, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_LIMIT_S", 3.0)  # for a shell to start
    program(compiling / "cmake", f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/compiler; wait\n")
    with pytest.raises(build.BuildFailed) as failed:
        build.build()
    assert failed.value.log.read_text().endswith("cmake did not end within 3 s\n")
    compiler = int((tmp_path / "compiler").read_text())
    with contextlib.suppress(ProcessLookupError):  # it has gone already
        assert select.select([os.pidfd_open(compiler)], [], [], 60)[0]


def test_a_builder_without_an_end_is_not_waited_for(compiling, monkeypatch):
    monkeypatch.setattr(build, "_LIMIT_S", 0.05)
    build._target().parent.mkdir(parents=True)
    other = [sys.executable, "-c", HOLD_LOCK, build._target().with_suffix(".lock")]
    with commands.Command(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(
            ArenaUnavailable, match=r"another process has been building the arena for 0.05 s .*; end it"
        ):
            build.build()
        process.communicate(timeout=60)


def test_info_builds_nothing(compiling, monkeypatch):
    monkeypatch.setattr(build, "_run", lambda *_: pytest.fail("it was built"))
    assert arena.unusable(may_build=False) == "it is not built yet; the first use builds it"
    assert info.collect()["arena"]["cpu"] == "it is not built yet; the first use builds it"


@pytest.mark.parametrize(
    ("torch_cuda", "environment", "gpus", "expected"),
    [
        (None, {"BIMKERN_CUDA": "ON", "BIMKERN_CUDA_ARCHS": "90"}, 1, "OFF"),
        ("13.0", {}, 1, "AUTO"),
        ("13.0", {}, 0, "OFF"),
        ("13.0", {"BIMKERN_CUDA_ARCHS": "90"}, 0, "AUTO"),
        ("13.0", {"BIMKERN_CUDA_ARCHS": "90", "CUDACXX": "no-such-nvcc"}, 1, "OFF"),
        ("13.0", {"BIMKERN_CUDA": "OFF"}, 1, "OFF"),
        ("13.0", {"BIMKERN_CUDA": "ON"}, 0, "ON"),
    ],
)
def test_a_build_with_cuda_is_another_than_one_without(sources, monkeypatch, torch_cuda, environment, gpus, expected):
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    program(sources / "nvcc", "#!/bin/sh\n")
    for name in ("BIMKERN_CUDA", "BIMKERN_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDACXX", str(sources / "nvcc"))
    monkeypatch.setenv("CXX", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert build.configure()[-1] == f"-DBIMKERN_CUDA={expected}"
    target = build._target()
    monkeypatch.setattr(build, "_cuda", lambda: "another")
    assert build._target() != target


LEFT_OUT = "this installation is without the compiled part: install bimkern again, without BIMKERN_NATIVE=0"


def test_where_the_compiled_part_was_left_out_nothing_is_built_unless_asked_for(compiling):
    (compiling.parent / "_native.so").unlink()
    assert arena.unusable() == LEFT_OUT
    with pytest.raises(build.BuildFailed):
        build.build(again=True)


def test_without_sources_there_is_nothing_to_build(sources):
    shutil.rmtree(sources)
    assert arena.unusable() == LEFT_OUT
    with pytest.raises(SystemExit, match=LEFT_OUT) as stop:
        build.main()
    assert stop.value.__suppress_context__  # one line, no traceback of what was handled


@pytest.mark.long
def test_what_a_wheel_has_is_built_once_for_all_processes(tmp_path, cache):
    """The sources as CMake installs them into a wheel, and two processes that want the module at the same time."""
    folder, site = tmp_path / "build", tmp_path / "site"
    configure = ["cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}", "-DBIMKERN_CUDA=OFF"]
    for command in (configure, ["cmake", "--install", folder, "--prefix", site, "--component", "source"]):
        commands.run(command, check=True, timeout=120)
    own = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "bimkern", site / "bimkern", ignore=own, dirs_exist_ok=True)
    shutil.copy(ROOT / "bimkern" / "_native.so", site / "bimkern")
    # Unoptimized, since that is quicker.
    environment = os.environ | {"CMAKE_BUILD_TYPE": "None", "BIMKERN_CUDA_ARCHS": "", "PYTHONPATH": str(site)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [commands.Command([sys.executable, "-c", ONE_STEP], cwd=site, env=environment, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    (module,) = cache.rglob("*.so")
    assert [out.split() for out, _ in outputs] == [["True", str(module)]] * 2, outputs
    assert sum(err.count("building the arena for torch") for _, err in outputs) == 1
    assert sum(len(re.findall(r"built the arena in \d+ s \(.*\.so\)\n", err)) for _, err in outputs) == 1
