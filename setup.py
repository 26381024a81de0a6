"""Drives CMake for the compiled part; everything else about the package stands in pyproject.toml.

BIMKERN_NATIVE=0 installs without the compiled part. BIMKERN_CUDA=AUTO|ON|OFF is passed on to CMake.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


LIBRARY, ARENA = "bimkern._native", "bimkern.arena._arena"


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # torch loads the library: no Python ABI in the name
        return fullname.replace(".", os.sep) + ".so" if fullname == LIBRARY else super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        if ext.name == ARENA:
            return  # it comes with the library
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        cuda = os.environ.get("BIMKERN_CUDA", "AUTO")
        # --fresh: what an earlier build remembers lies in an isolated environment that is gone.
        configure = [
            "cmake", "--fresh", "-S", str(ROOT), "-B", self.build_temp, "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={library.parent.parent}",
            f"-DBIMKERN_CUDA={cuda}", "-DBIMKERN_BRIDGE=ON", "-DBIMKERN_TESTS=OFF",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", self.build_temp, "--target", "install"], check=True)


native = os.environ.get("BIMKERN_NATIVE", "1") != "0"
extensions = [Extension(LIBRARY, sources=[]), Extension(ARENA, sources=[], optional=True)]  # optional: needs Python.h
setup(
    ext_modules=extensions if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
