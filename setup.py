"""Drives CMake for the compiled part; everything else about the package stands in pyproject.toml.

BIMKERN_NATIVE=0 installs without the compiled part. BIMKERN_CUDA=AUTO|ON|OFF is passed on to CMake, which also reads
BIMKERN_CUDA_ARCHS. BIMKERN_BUILD=DIR builds in that folder and keeps it, so that CMake can reuse it.
"""

import os
import re
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REMEDY = (
    "Mend it, or leave the compiled part out: BIMKERN_NATIVE=0 pip install ... (every op then runs on plain torch)."
)


# As compilers, nvcc, ptxas, CMake and ninja report; a flag or a file may have the word in its name.
ERROR = re.compile(r"(^|\s)(error|fatal)\s*:|^CMake Error")


class EmptyBuild(build):
    def run(self) -> None:
        """Build into an empty folder: whatever lies there goes into the wheel, and pip builds where it built before."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"  # torch loads the library: no Python ABI in the name

    def build_extension(self, ext: Extension) -> None:
        # The op library alone: it serves every Python and torch. The arena's first use builds its module from sources,
        # which a wheel brings along.
        prefix, components = (ROOT, ["native"]) if self.editable_mode else (self.build_lib, ["native", "source"])
        folder = os.environ.get("BIMKERN_BUILD", self.build_temp)
        # --fresh: what an earlier build remembers lies in an isolated environment that is gone.
        run(
            "cmake", "--fresh", "-S", ROOT, "-B", folder, "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DBIMKERN_CUDA={os.environ.get('BIMKERN_CUDA', 'AUTO')}",
            "-DBIMKERN_BRIDGE=ON", "-DBIMKERN_TESTS=OFF",
        )  # fmt: skip
        run("cmake", "--build", folder, "--target", "bimkern_native")
        for component in components:
            run("cmake", "--install", folder, "--prefix", prefix, "--component", component)

    def copy_extensions_to_source(self) -> None:
        """Do nothing: CMake has installed them there."""


class AnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


def run(*command: str | Path) -> None:
    """Run a part of the build. Its reason to fail comes last, where pip shows it."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        raise SystemExit(f"bimkern: no {command[0]} was found (pip install cmake ninja).\n{REMEDY}") from None
    lines = []
    with process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode != 0:
        raise SystemExit(f"bimkern: '{' '.join(map(str, command[:2]))}' failed: {reason(lines)}\n{REMEDY}")


def reason(lines: list[str]) -> str:
    """Return the first error, with the lines below it where it names a place, as CMake does; else the last line."""
    at = next((i for i, line in enumerate(lines) if ERROR.search(line)), None)
    if at is None:
        return next(filter(None, reversed(lines)), "it printed nothing")
    below = takewhile(lambda line: line[:1] in ("", " "), lines[at + 1 :]) if lines[at].endswith(":") else ()
    return " ".join([lines[at], *(line.strip() for line in below if line.strip())][:4])


native = os.environ.get("BIMKERN_NATIVE", "1") != "0"
setup(
    ext_modules=[Extension("bimkern._native", sources=[])] if native else [],
    cmdclass={"build": EmptyBuild, "build_ext": CMakeBuild, "bdist_wheel": AnyPython},
)
