"""A torchvision built for CUDA beside a torch that was not, and other pairs, each in a process of its own."""

import os
import sys

import commands
import pytest
from interop import TORCHVISION_FOR_CUDA

FAILS = """
try:
    import torchvision
except Exception as error:
    print(error)
"""


def run(tmp_path, torchvision, cuda, code):
    """Run code beside a torchvision and a torch that says that it was built for cuda; return what is printed."""
    (tmp_path / "torchvision.py").write_text(torchvision)
    code = f"import torch\ntorch.version.cuda = {cuda!r}\n{code}"
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return commands.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
    ).stdout


def test_it_imports_and_only_calls_of_the_operator_fail(tmp_path):
    code = f"""{FAILS}
import bimkern.torchvision_compat
import torchvision
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error:
    print(error)
"""
    before, call = run(tmp_path, TORCHVISION_FOR_CUDA, None, code).splitlines()[:2]
    assert before == "operator torchvision::nms does not exist"
    assert call.startswith("Could not run 'torchvision::nms' with arguments from the 'CPU' backend")


@pytest.mark.parametrize(
    ("torchvision", "cuda", "printed"),
    [
        (TORCHVISION_FOR_CUDA, "13.0", "operator torchvision::nms does not exist\n"),  # two builds that do not fit
        ("raise RuntimeError('another fault')", None, "another fault\n"),
        ("", None, ""),
    ],
)
def test_nothing_is_declared_elsewhere(tmp_path, torchvision, cuda, printed):
    code = f"import bimkern.torchvision_compat\n{FAILS}\nassert not hasattr(torch.ops.torchvision, 'nms')"
    assert run(tmp_path, torchvision, cuda, code) == printed
