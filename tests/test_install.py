"""What an installation asks for, says and leaves: the build backend and setup.py, with stand-ins for the slow tools."""

import os
import runpy
import shutil
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import commands
import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
LEAVE_OUT = "leave the compiled part out: BIMKERN_NATIVE=0 pip install ... (every op then runs on plain torch)."

# Builds nothing, installs what CMake would.
CMAKE = f"""#!{sys.executable}
import pathlib, sys
with open(pathlib.Path(__file__).with_name("log"), "a") as log:
    print(*sys.argv[1:], file=log)
if "--install" in sys.argv:
    prefix = pathlib.Path(sys.argv[sys.argv.index("--prefix") + 1])
    name = {{"native": "_native.so", "source": "source/CMakeLists.txt"}}[sys.argv[sys.argv.index("--component") + 1]]
    (prefix / "bimkern" / name).parent.mkdir(parents=True, exist_ok=True)
    (prefix / "bimkern" / name).touch()
"""
FAILING_CMAKE = f"""#!{sys.executable}
print("--\\nCMake Error at CMakeLists.txt:1 (project):\\n  The compiler\\n\\n    is broken\\n\\n-- more\\n" * 100)
raise SystemExit(1)
"""


@pytest.fixture(scope="module")
def sources():
    """The files of the repository, and those that are still to be added."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("the list of sources takes git and a clone")
    command = [git, "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = commands.run(command, cwd=ROOT, check=True).stdout.splitlines()
    return [Path(name) for name in listed if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def clone(sources, tmp_path_factory):
    """The sources alone: a clone may also hold an environment of gigabytes."""
    folder = tmp_path_factory.mktemp("clone")
    for name in sources:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with nothing on it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def put(folder, name, text="#!/bin/sh\n"):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def backend(clone, call, **environment):
    """Call the build backend as an installer does."""
    code = f"import sys; sys.path.insert(0, 'python'); import build_backend; print(build_backend.{call})"
    command = [sys.executable, "-c", code]
    return commands.run(command, cwd=clone, env=os.environ | environment)


def test_without_a_compiler_an_installation_ends_before_it_downloads_anything(clone, programs):
    done = backend(clone, "for_the_compiled_part()")
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        "bimkern: no C++ compiler was found (c++ or g++ or clang++ on the PATH).",
        "Install one (Debian and Ubuntu: apt install g++), or name it by CXX.",
        f"Or {LEAVE_OUT}",
    ]


def test_a_build_asks_for_torch_only_where_there_is_none(clone, programs):
    put(programs, "c++")
    assert backend(clone, "for_the_compiled_part()").stdout == "['cmake>=3.24', 'ninja']\n"
    code = "import build_backend as b; b.find_torch.hidden = lambda: ['nowhere']; print(b.for_the_compiled_part())"
    done = commands.run([sys.executable, "-c", code], cwd=clone / "python", check=True)
    assert done.stdout == "['cmake>=3.24', 'ninja', 'torch>=2.11,<2.16']\n"


@pytest.mark.parametrize("system_site_packages", [True, False])
def test_the_torch_of_the_base_or_the_user_counts_if_the_environment_takes_it_over(tmp_path, system_site_packages):
    venv.create(tmp_path / "venv", system_site_packages=system_site_packages)
    # As pip isolates a build.
    environment = os.environ | {"PYTHONUSERBASE": str(tmp_path / "user"), "PYTHONNOUSERSITE": "1", "PYTHONPATH": ""}

    def ask(*command):
        command = [tmp_path / "venv" / "bin" / "python", *command]
        return commands.run(command, cwd=ROOT / "python", env=environment)

    of_user = Path(ask("-m", "site", "--user-site").stdout.strip())
    for name in ("torch", "torch-2.11.0.dist-info"):
        (of_user / name).mkdir(parents=True)
    (of_user / "torch" / "__init__.py").touch()
    (of_user / "torch-2.11.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.11.0\n")
    hidden = ask("-c", "import find_torch; print(*find_torch.hidden(), sep='\\n')").stdout.splitlines()
    assert (str(of_user) in hidden) == system_site_packages
    assert any(folder.startswith(sys.base_prefix) for folder in hidden) == system_site_packages
    assert ask("-c", "import find_torch; print(find_torch.installed())").stdout == f"{system_site_packages}\n"
    assert Path(ask("find_torch.py").stdout).name == ("torch" if system_site_packages else "")


def test_without_the_compiled_part_nothing_is_asked_for(clone, programs):
    assert backend(clone, "for_the_compiled_part()", BIMKERN_NATIVE="0").stdout == "[]\n"


def test_an_old_setuptools_is_named(clone):
    code = "import setuptools; setuptools.__version__ = '65.5.0'; import build_backend"
    command = [sys.executable, "-c", code]
    done = commands.run(command, cwd=clone / "python")
    expected = "bimkern: the build needs setuptools 77 or newer, got 65.5.0 (pip install --upgrade setuptools).\n"
    assert (done.returncode, done.stderr) == (1, expected)


@pytest.mark.parametrize(
    ("cmake", "reason"),
    [
        (None, "bimkern: no cmake was found (pip install cmake ninja)."),
        (
            FAILING_CMAKE,
            "bimkern: 'cmake --fresh' failed: CMake Error at CMakeLists.txt:1 (project): The compiler is broken",
        ),
    ],
)
def test_what_ends_a_build_is_said_last(clone, programs, tmp_path, cmake, reason):
    if cmake is not None:
        put(programs, "cmake", cmake)
    done = backend(clone, f"build_wheel({str(tmp_path)!r})")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-2:] == [reason, f"Mend it, or {LEAVE_OUT}"]


COMPILE = "nvcc -Xptxas --warning-as-error -c a.cu"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ([f"FAILED: a.o {COMPILE}", 'a.cu(3): error: identifier "b" is undefined', "1 error detected"], 1),
        ([COMPILE, "nvcc fatal   : Unsupported gpu architecture 'compute_999'", "ninja: build stopped"], 1),
        ([COMPILE, "ptxas error   : Entry function 'f' uses too much shared data", ""], 1),
        (["In file included from csrc/core/error.h:3,", "a.h:1:10: fatal error: b.h: No such file or directory"], 1),
        (["a.cpp: In function 'int main()':", "a.cpp:3:5: error: 'b' was not declared", "    3 | b;"], 1),
        (["ninja: error: unknown target 'all'"], 0),
        (["[1/9] core/error.h", "Killed", "", ""], 1),
    ],
)
def test_the_reason_is_the_first_error_else_the_last_line(monkeypatch, output, reason):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    find = runpy.run_path(str(ROOT / "setup.py"))["reason"]
    assert find(output) == output[reason]
    assert find([]) == find([""]) == "it printed nothing"


def test_a_wheel_serves_every_python_and_has_the_sources_of_the_arena(clone, programs, tmp_path):
    """Also where an earlier build has left a module, which is for one Python."""
    stale = clone / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "bimkern" / "arena"
    stale.mkdir(parents=True, exist_ok=True)
    put(stale, "_arena.cpython-311-x86_64-linux-gnu.so")
    put(programs, "cmake", CMAKE)
    done = backend(clone, f"build_wheel({str(tmp_path)!r})")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    typed = {"bimkern/py.typed", "bimkern/arena/_arena.pyi"}
    assert {"bimkern/_native.so", "bimkern/source/CMakeLists.txt", *typed} <= set(names)
    assert not [name for name in names if "_arena." in name and not name.endswith(".pyi")]


def test_an_installation_in_place_compiles_what_a_wheel_does(clone, programs, tmp_path):
    put(programs, "cmake", CMAKE)
    done = backend(clone, f"build_editable({str(tmp_path)!r})")
    assert done.returncode == 0, done.stderr
    calls = (programs / "log").read_text().splitlines()
    assert [line for line in calls if "--target" in line] == [calls[1]]
    assert calls[1].endswith("--target bimkern_native")
    assert [line.split("--component ")[1] for line in calls if "--install" in line] == ["native"]


def test_a_build_folder_that_is_named_is_used_and_kept(clone, programs, tmp_path):
    put(programs, "cmake", CMAKE)
    kept = tmp_path / "kept"
    kept.mkdir()
    done = backend(clone, f"build_editable({str(tmp_path)!r})", BIMKERN_BUILD=str(kept))
    assert done.returncode == 0, done.stderr
    configure, build, install = (programs / "log").read_text().splitlines()
    assert f"-B {kept} " in configure
    assert build.startswith(f"--build {kept} ")
    assert install.startswith(f"--install {kept} ")
    assert kept.is_dir()


def test_a_wheel_without_the_compiled_part_is_for_every_machine(clone, programs, tmp_path):
    done = backend(clone, f"build_wheel({str(tmp_path)!r})", BIMKERN_NATIVE="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_a_source_distribution_is_complete(clone, sources, programs, tmp_path):
    done = backend(clone, f"build_sdist({str(tmp_path)!r})")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {Path(*Path(name).parts[1:]) for name in opened.getnames()}
    assert not {name for name in sources if not name.parts[0].startswith(".")} - names
