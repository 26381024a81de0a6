"""Finds the torch whose headers the compiled part takes, also where an isolated build hides what is installed.

A module for build_backend.py, and a program for CMake: it prints the folder, and fails where there is none.
"""

import site
import sys
from importlib.metadata import distributions
from importlib.util import find_spec

OLDEST = (2, 11)


def hidden():
    """Return the folders of packages: of this environment, and of its base and its user if it takes them over."""
    of_user = [site.getusersitepackages()] if sys.base_prefix in site.PREFIXES else []
    return of_user + site.getsitepackages()


def installed():
    """Return whether one of these folders has a torch that is new enough."""
    versions = (torch.version.split(".")[:2] for torch in distributions(name="torch", path=hidden()))
    return any(tuple(map(int, version)) >= OLDEST for version in versions)


if __name__ == "__main__":
    sys.path += hidden()
    torch = find_spec("torch")
    if torch is None:
        raise SystemExit("no torch")
    print(torch.submodule_search_locations[0], end="")
