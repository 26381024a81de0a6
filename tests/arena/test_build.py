"""Where the arena's compiled module comes from: the package, another torch's, or a build on first use."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    """A package without a module; what was found before is found again afterwards."""
    monkeypatch.setattr(_native, "_PACKAGE", tmp_path)
    for name in ("_here", "_built"):
        monkeypatch.setattr(_native, name, getattr(_native, name).__wrapped__)
    return tmp_path


@pytest.fixture
def sources(nothing_built, monkeypatch):
    """An installed package that has sources, a native library and no module: the builds of a test are its own."""
    package = nothing_built / "bimkern"
    (package / "arena").mkdir(parents=True)
    for folder in ("csrc/arena", "python"):
        (package / "source" / folder).mkdir(parents=True)
    (package / "source" / "CMakeLists.txt").touch()
    (package / "_native.so").touch()
    monkeypatch.setattr(build, "__file__", str(package / "arena" / "build.py"))
    monkeypatch.setattr(build, "_digest", build._digest.__wrapped__)
    return package / "source"


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def test_a_module_of_the_same_release_is_taken(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.77.0+cu999")
    path = tmp_path / build.module_name()
    assert ".torch2.77." in path.name
    path.touch()
    monkeypatch.setattr(torch, "__version__", "2.77.3")
    assert list(_native._candidates(tmp_path)) == [path]


def test_what_was_built_here_goes_before_the_packages_own(sources):
    """As the message about a module without CUDA promises."""
    own, built = _native._PACKAGE / build.module_name(), build._target()
    built.parent.mkdir(parents=True)
    for path in (own, built):
        path.touch()
    assert list(_native._candidates(_native._PACKAGE)) == [built, own]
    built.unlink()
    assert list(_native._candidates(_native._PACKAGE)) == [own]


def test_where_one_cannot_be_loaded_the_next_is_taken(sources, module, caplog, monkeypatch):
    own, built = _native._PACKAGE / build.module_name(), build._target()
    built.parent.mkdir(parents=True)
    for path in (own, built):
        path.write_bytes(b"not a library")
    monkeypatch.setattr(build, "build", lambda: module)
    assert _native.native().__file__ == str(module)
    assert [path for path in (built, own) if f"the arena {path} cannot be loaded: " in caplog.text] == [built, own]


def test_a_module_of_another_release_is_taken_if_it_passes_its_self_test(nothing_built, module, caplog):
    path = nothing_built / build.module_name(release="1.0")
    shutil.copy(module, path)
    assert list(_native._candidates(nothing_built)) == [path]
    (message,) = caplog.messages
    assert message.startswith(
        f"the arena {path.name} is for another torch than {torch.__version__}, and passed its self"
    )
    assert message.endswith("'python -m bimkern.arena.build' builds it for this torch and this Python")


def test_a_module_that_crashes_in_its_self_test_is_not_used(nothing_built, monkeypatch):
    monkeypatch.setattr(build.sysconfig, "get_config_var", lambda name: ".py")
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    (nothing_built / build.module_name(release="1.0")).write_text(crash)
    assert list(_native._candidates(nothing_built)) == []


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


@pytest.fixture
def compiling(sources, monkeypatch):
    """A cmake that fails, and the programs that a build looks for."""
    program(sources / "cmake", "#!/bin/sh\necho no space left; exit 1\n")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(sources / name))
    return sources


def test_a_build_that_has_failed_long_ago_is_tried_once_more(compiling):
    for _ in range(2):
        with pytest.raises(build.BuildFailed) as failed:
            build.build()
    log = failed.value.log
    assert log.read_text() == "no space left\n"
    program(compiling / "cmake", f"#!/bin/sh\ntest $1 = -S || touch $2/{build.module_name()}\n")
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
    with contextlib.suppress(FileNotFoundError):  # or it is a zombie, which whoever adopted it has not seen yet
        assert Path(f"/proc/{compiler}/stat").read_text().split()[2] == "Z"


def test_a_builder_without_an_end_is_not_waited_for(compiling, monkeypatch):
    monkeypatch.setattr(build, "_LIMIT_S", 0.05)
    build._target().parent.mkdir(parents=True)
    other = [sys.executable, "-c", HOLD_LOCK, build._target().with_suffix(".lock")]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
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


def test_what_a_wheel_has_is_built_once_for_all_processes(tmp_path, cache):
    """The sources as CMake installs them into a wheel, and two processes that want the module at the same time."""
    folder, site = tmp_path / "build", tmp_path / "site"
    configure = ["cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}", "-DBIMKERN_CUDA=OFF"]
    for command in (configure, ["cmake", "--install", folder, "--prefix", site, "--component", "source"]):
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    own = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "bimkern", site / "bimkern", ignore=own, dirs_exist_ok=True)
    shutil.copy(ROOT / "bimkern" / "_native.so", site / "bimkern")
    # Unoptimised, since that is quicker.
    environment = os.environ | {"CMAKE_BUILD_TYPE": "None", "BIMKERN_CUDA_ARCHS": "", "PYTHONPATH": str(site)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", ONE_STEP], cwd=site, env=environment, **pipes) for _ in range(2)]
    told = [process.communicate(timeout=300) for process in both]
    (module,) = cache.rglob("*.so")
    assert [out.split() for out, _ in told] == [["True", str(module)]] * 2, told
    assert sum(err.count("building the arena for torch") for _, err in told) == 1
