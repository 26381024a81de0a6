"""Builds the compiled module for the torch and the Python that run: on first use, into the cache, once.

`python -m bimkern.arena.build` does it again, and shows what the build says. The sources come with the package; CMake,
a C++ compiler and Python's headers are this machine's.
"""

import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from bimkern.arena.errors import ArenaUnavailable
from bimkern.cache import cache_folder

logger = logging.getLogger("bimkern.arena")

REMEDY = "'python -m bimkern.arena.build' builds it for this torch and this Python"
_INSTALL = "install {} and run 'python -m bimkern.arena.build'"


def module_name(release: str | None = None) -> str:
    """Return the file name of a module for a release of torch, as "2.13", by default this one, and for this Python."""
    release = release or ".".join(torch.__version__.split(".")[:2])
    return f"_arena.torch{release}{sysconfig.get_config_var('EXT_SUFFIX')}"


def built() -> Path:
    """Return where a module for these sources, torch and Python lies once it was built."""
    return cache_folder() / "arena" / _digest() / module_name()


def build(*, again: bool = False) -> Path:
    """Build the module, unless another process just has, and return it.

    Raises:
        ArenaUnavailable: something is missing, or the build failed, now or before; the message has the remedy.
    """
    path = built()
    log = path.with_suffix(".log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if again:
                log.unlink(missing_ok=True)
            elif path.exists():
                return path
            if log.exists():
                raise ArenaUnavailable(f"the arena could not be built ({log} says why); {REMEDY}")
            command = _configure()
            logger.warning(
                "building the arena for torch %s and this Python, once; it may take a minute", torch.__version__
            )
            _run(command, path, log)
    except OSError as error:
        raise ArenaUnavailable(
            f"{path.parent} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    return path


def _run(configure: list[str], path: Path, log: Path) -> None:
    """Leave the module at path, whole; or the output at log, so that no process tries in vain again."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        make = [configure[0], "--build", folder, "--parallel", "--target", "bimkern_arena_module"]
        for command in ([*configure, "-B", folder], make):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if done.returncode != 0:
                log.write_text(done.stdout)
                raise ArenaUnavailable(f"the arena could not be built ({log} says why); {REMEDY}")
        os.replace(Path(folder) / path.name, path)


def _configure() -> list[str]:
    """Return the command that configures the build, without the folder."""
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
    return [cmake, "-S", str(_source()), *generator, *options]


def _program(name: str) -> str | None:
    """Find a program on the PATH, or beside this Python: a virtual environment need not be active."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _source() -> Path:
    """Return the folder of CMakeLists.txt: inside of an installed package, above that of a clone."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "source", package.parent):
        if (folder / "CMakeLists.txt").exists() and (folder / "csrc" / "arena").is_dir():
            return folder
    raise ArenaUnavailable("the arena was not built, and this installation has no sources of it: install bimkern again")


@functools.cache
def _digest() -> str:
    """Name a build by what goes into it."""
    source, digest = _source(), hashlib.sha256()
    for part in (torch.__version__, str(torch.version.cuda)):
        digest.update(part.encode())
    files = [source / "CMakeLists.txt", *(source / "csrc").rglob("*.*"), *(source / "python").glob("*.*")]
    for file in sorted(filter(Path.is_file, files)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Build the module again, and show why that failed."""
    try:
        print(build(again=True))
    except ArenaUnavailable as error:
        if (log := built().with_suffix(".log")).exists():
            print(log.read_text())
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
