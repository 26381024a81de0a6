import json
import os
import sys

import commands
import pytest
from interop import TORCHVISION_FOR_CUDA

from bimkern import __version__, info, ops
from bimkern.train.optim.adapters import not_nvidias


def run(*arguments, search_path="", **environment):
    paths = os.pathsep.join([str(search_path), os.environ.get("PYTHONPATH", "")])
    return commands.run(
        [sys.executable, "-m", "bimkern.info", *arguments],
        env=os.environ | environment | {"PYTHONPATH": paths},
        check=True,
    ).stdout


@pytest.fixture
def printed(monkeypatch, capsys):
    """What the command prints, in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bimkern-info", *arguments])
        info.main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The report of an installation whose packages are other ones, or do not fit, or are half there."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "apex.py").write_text("")
    (folder / "xformers.py").write_text("raise OSError('built for another torch\\nand another CUDA')")
    (folder / "torchvision.py").write_text(TORCHVISION_FOR_CUDA)
    (folder / "timm.py").write_text("import torchvision")
    package = folder / "nvidia" / "nvimgcodec"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("__version__ = '0.8.1'")
    return json.loads(run("--json", search_path=folder))


def test_says_one_fact_a_line(printed):
    report = printed().splitlines()
    assert f"{'bimkern':12} {__version__}" in report
    assert "arena        cpu: usable" in report
    for op in ops.backends():
        assert sum(line.startswith(f"op {op} ") for line in report) == len(("cpu", "cuda"))
    for name in info.OPTIONAL:
        assert sum(line.startswith(f"optional {name} ") for line in report) == 1
    for choice in ("attention sdpa ", "attention xformers ", "optimizer adamw ", "optimizer apex_adam "):
        assert sum(line.startswith(choice) for line in report) == 1


def test_json_holds_the_same(printed):
    report = json.loads(printed("--json"))
    assert report["versions"]["bimkern"] == __version__
    assert report["ops"].keys() == ops.backends().keys()
    assert report["optional"].keys() == info.OPTIONAL.keys()
    assert all((found["version"] is None) == (found["reason"] is not None) for found in report["optional"].values())


def test_what_may_be_chosen_is_usable_or_has_a_reason(broken, standins, printed):
    choices = broken["choices"]
    assert choices["attention"] == {"sdpa": None, "xformers": "cannot be imported: built for another torch"}
    not_nvidias = "a package of this name is installed, but it is not NVIDIA's"
    assert choices["optimizer"] == {"adamw": None, "apex_adam": not_nvidias, "apex_lamb": not_nvidias}
    report = printed().splitlines()
    for option in ("attention", "optimizer"):
        for name in choices[option]:
            assert f"{option} {name:12} usable on {choices['device']}" in report


def test_a_torchvision_built_for_cuda_is_named_with_the_remedy(broken):
    report = info.lines(broken)
    reason = (
        "cannot be imported: operator torchvision::nms does not exist (torchvision was built for CUDA, or for another "
        "torch: install it from the index that torch came from; beside a CPU torch, "
        "`import bimkern.torchvision_compat` before it helps too)"
    )
    for name in ("timm", "torchvision"):
        assert f"optional {name:12} none: {reason}" in report


def test_says_which_instruction_set_the_cpu_kernels_use():
    assert json.loads(run("--json", BIMKERN_CPU="baseline"))["native"]["simd"] == "baseline"
    native = next(line for line in run(BIMKERN_CPU="avx1024").splitlines() if line.startswith("native "))
    assert "BIMKERN_CPU cannot be met" in native


def test_tells_the_version_of_nvimagecodec(broken):
    assert "optional nvimgcodec   0.8.1" in info.lines(broken)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "not installed"),
        ("raise RuntimeError('built for another torch')", "cannot be imported: built for another torch"),
        ("import a_module_that_is_not_there", "cannot be imported: No module named 'a_module_that_is_not_there'"),
        ("__version__ = '0.9'", "a package of this name is installed, but it is not NVIDIA's"),
    ],
)
def test_a_package_that_does_not_work_is_a_reason(tmp_path, monkeypatch, source, reason):
    name = f"package_{abs(hash(source))}"
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = info._optional(name, not_nvidias)
    assert found["version"] is None
    assert found["reason"].startswith(reason)
