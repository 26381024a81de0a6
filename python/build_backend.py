"""The build backend: setuptools', which looks at this machine first, and asks for what the compiled part lacks.

torch is there for its headers. Those of the torch that is installed already will do, whatever its version in the
range: the library is on its stable ABI. So nothing is downloaded twice, and nothing at all for BIMKERN_NATIVE=0.
"""

import os
import shutil

import find_torch
import setuptools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

OLDEST_SETUPTOOLS = 77

if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:  # a build without isolation takes any
    raise SystemExit(
        f"bimkern: the build needs setuptools {OLDEST_SETUPTOOLS} or newer, got {setuptools.__version__} "
        "(pip install --upgrade setuptools)."
    )


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + for_the_compiled_part()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + for_the_compiled_part()


def for_the_compiled_part():
    if os.environ.get("BIMKERN_NATIVE", "1") == "0":
        return []
    require_compiler()
    return ["cmake>=3.24", "ninja"] + ([] if find_torch.installed() else ["torch>=2.11,<2.16"])


def require_compiler():
    """Stop where there is no C++ compiler, before anything is downloaded for a build that cannot be."""
    named = os.environ.get("CXX")
    candidates = named.split()[:1] if named else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, candidates)):
        raise SystemExit(
            f"bimkern: no C++ compiler was found ({' or '.join(candidates)} on the PATH).\n"
            "Install one (Debian and Ubuntu: apt install g++), or name it by CXX.\n"
            "Or leave the compiled part out: BIMKERN_NATIVE=0 pip install ... (every op then runs on plain torch)."
        )
