"""Builds the compiled module for the torch and the Python that run: on first use, into the cache, once.

`python -m bimkern.arena.build` does it again, and shows why that failed. The sources come with the package; CMake,
a C++ compiler and Python's headers are this machine's. A module's path has all that decides what it is: a digest of the
sources, of CUDA and of the flags, the release of torch, and the Python.
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from bimkern.arena.errors import ArenaUnavailable
from bimkern.files.cache import cache_folder

logger = logging.getLogger("bimkern.arena")

REMEDY = "'python -m bimkern.arena.build' builds it for this torch and this Python"
_LEFT_OUT = "this installation is without the compiled part: install bimkern again, without BIMKERN_NATIVE=0"
_INSTALL = "install {} and run 'python -m bimkern.arena.build'"
_LIMIT_S = 900.0  # for a build, and for one that another process makes; a minute is usual
_RETRY_S = 3600.0  # what has failed may have lacked room or memory only, but not every process is to try
_SOURCES = (  # without what editors leave beside them
    "CMakeLists.txt",
    "csrc/[!.]*.cmake",
    *(f"csrc/{name}" for name in ("core/[!.]*.h", "arena/[!.]*.h", "arena/[!.]*.cpp", "arena/[!.]*.cu")),
    *(f"python/[!.]*.{suffix}" for suffix in ("h", "cpp")),
)
_FLAGS = ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_BUILD_TYPE")  # that CMake takes from the environment
_CUDA_FLAGS = ("CUDACXX", "CUDAFLAGS", "BIMKERN_CUDA_ARCHS")


class BuildFailed(ArenaUnavailable):
    """A build failed, now or before; the log holds its output."""

    def __init__(self, log: Path) -> None:
        super().__init__(f"the arena could not be built ({log} says why); {REMEDY}")
        self.log = log


def module_name(release: str | None = None) -> str:
    """Return the file name of a module for a release of torch, as "2.13", by default this one, and for this Python."""
    release = release or ".".join(torch.__version__.split(".")[:2])
    return f"_arena.torch{release}{sysconfig.get_config_var('EXT_SUFFIX')}"


def would_build() -> bool:
    """Return whether the first use would build the module: there is none, and nothing is known to be missing."""
    try:
        if _target().exists():
            return False
        configure()
    except ArenaUnavailable:
        return False
    return True


def for_other_torches() -> Iterator[Path]:
    """Yield the modules of the same sources and flags that were built for other releases of torch."""
    with contextlib.suppress(ArenaUnavailable):
        target = _target()
        yield from sorted(set(target.parent.glob(module_name(release="*"))) - {target})


def build(*, again: bool = False) -> Path:
    """Build the module, unless there is one, and return it.

    Raises:
        ArenaUnavailable: something is missing, or the build failed, now or before; the message has the remedy.
    """
    path = _target()
    if path.exists() and not again:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_LIMIT_S):
            if path.exists() and not again:  # another process has just built it
                return path
            command, start = configure(again=again), time.monotonic()
            logger.warning(
                "building the arena for torch %s and this Python, once; it may take a minute", torch.__version__
            )
            _run(command, path, path.with_suffix(".log"))
            logger.warning("built the arena in %.0f s (%s)", time.monotonic() - start, path)
    except Timeout as error:
        raise ArenaUnavailable(
            f"another process has been building the arena for {_LIMIT_S:g} s (it holds {error.lock_file}); end it, "
            "then run 'python -m bimkern.arena.build'"
        ) from error
    except OSError as error:
        raise ArenaUnavailable(
            f"{path.parent} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    return path


def _run(configure: list[str], path: Path, log: Path) -> None:
    """Leave the module at path, whole; or the output at log, so that not every process tries in vain."""
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        output = Path(folder) / "output"
        make = [configure[0], "--build", folder, "--parallel", "--target", "bimkern_arena_module"]
        for command in ([*configure, "-B", folder], make):
            if not _succeeds(command, output):
                os.replace(output, log)
                raise BuildFailed(log)
        os.replace(Path(folder) / "_arena.so", path)


def _succeeds(command: list[str], output: Path) -> bool:
    """Run a command within the limit. It has a process group of its own: compilers end with it."""
    with output.open("a") as file:
        try:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:  # as of a script in an environment that was moved, whose Python is not there
            file.write(f"{command[0]}, or what its first line names, cannot be run ({error.strerror})\n")
            return False
        try:
            return process.wait(_LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            file.write(f"\n{command[0]} did not end within {_LIMIT_S:g} s\n")
            return False
        finally:
            if process.returncode is None:  # also when interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def configure(*, again: bool = False) -> list[str]:
    """Return the command that configures the build, without the folder.

    Raises:
        ArenaUnavailable: nothing can be built here, or a recent build failed and `again` is not set.
    """
    if not again:
        if not (_package() / "_native.so").exists():
            raise ArenaUnavailable(_LEFT_OUT)
        log = _target().with_suffix(".log")
        if log.exists() and time.time() - log.stat().st_mtime < _RETRY_S:
            raise BuildFailed(log)
    cmake, ninja = _program("cmake"), _program("ninja")
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    python_h = Path(sysconfig.get_path("include")) / "Python.h"
    for missing, package in (
        (cmake is None, "CMake (pip install cmake ninja)"),
        (not any(map(shutil.which, compiler)), "a C++ compiler (Debian and Ubuntu: apt install g++)"),
        (not python_h.exists(), "Python's headers (Debian and Ubuntu: apt install python3-dev)"),
    ):
        if missing:
            raise ArenaUnavailable(
                f"the arena was not built for torch {torch.__version__} and this Python, and cannot be: "
                + _INSTALL.format(package)
            )
    assert cmake is not None
    generator = [] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DBIMKERN_BRIDGE=ON", "-DBIMKERN_TESTS=OFF"]
    return [cmake, "-S", str(_source()), *generator, *options, f"-DBIMKERN_CUDA={_cuda()}"]


def _cuda() -> str:
    """Return BIMKERN_CUDA; instead of AUTO, OFF where there are no CUDA, no nvcc or no GPU to build for."""
    wanted = os.environ.get("BIMKERN_CUDA", "AUTO")
    if torch.version.cuda is None:
        return "OFF"
    if wanted != "AUTO":
        return wanted
    gpu = os.environ.get("BIMKERN_CUDA_ARCHS") or torch.cuda.device_count() > 0
    return "AUTO" if gpu and shutil.which(os.environ.get("CUDACXX", "nvcc")) else "OFF"


def _program(name: str) -> str | None:
    """Find a program on the PATH, or beside this Python: a virtual environment need not be active."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _package() -> Path:
    return Path(__file__).resolve().parent.parent


def _source() -> Path:
    """Return the folder of CMakeLists.txt: inside of an installed package, above that of a clone."""
    for folder in (_package() / "source", _package().parent):
        if (folder / "CMakeLists.txt").exists() and (folder / "csrc" / "arena").is_dir():
            return folder
    raise ArenaUnavailable(_LEFT_OUT)


def _target() -> Path:
    return cache_folder() / "arena" / _digest() / module_name()


@functools.cache
def _digest() -> str:
    """Name a build by what goes into it, apart from torch and Python, which the module's own name has."""
    source, cuda, digest = _source(), _cuda(), hashlib.sha256()
    flags = [os.environ.get(name) for name in (_FLAGS if cuda == "OFF" else _FLAGS + _CUDA_FLAGS)]
    digest.update(repr((torch.version.cuda, cuda, flags)).encode())
    for file in sorted(file for pattern in _SOURCES for file in source.glob(pattern)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def main() -> None:
    """Build the module again, and show why that failed."""
    try:
        print(build(again=True))
    except ArenaUnavailable as error:
        if isinstance(error, BuildFailed):
            print(error.log.read_text(errors="backslashreplace"))  # compilers name files as they find them
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
