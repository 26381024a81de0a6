"""A stranger's first hour: docs/first-hour.md as it stands, its files saved and its commands run in an empty folder.

The first command begins in a Python of its own, the others in forks of one that has imported torch.
"""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import commands
import manual_pages
import pytest
import torch
from forked import ForkedCommand
from interop import import_or_skip, own_features
from PIL import Image
from skimage.data import chelsea

from bimkern.files import jsonl
from bimkern.mim.model import MIM
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.run_folder.folder import RunFolder

PAGE = manual_pages.ROOT / "docs/first-hour.md"


class Reader:
    """Works through a page in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(manual_pages.ROOT), os.environ.get("PYTHONPATH", "")])
        self.folder, self._variables = folder, {"PYTHONPATH": path, "COLUMNS": "120"}
        self.printed: list[str] = []  # by every command

    def follow(self, step):
        if step.file is not None:
            (self.folder / step.file).write_text(step.text)
            return
        program, *arguments = shlex.split(step.text)
        assert program == "python"
        start = ForkedCommand if self.printed else self._new_python
        process, lines = start(arguments, folder=self.folder, variables=self._variables), []
        for line in process.stdout:
            lines.append(line)
            if step.interrupted and line.startswith("step 1/"):
                process.send_signal(signal.SIGINT)
        lines.append(process.communicate()[1])
        self.printed.append("".join(lines))
        assert process.returncode == (128 + signal.SIGINT if step.interrupted else 0), self.printed[-1]

    def _new_python(self, arguments, *, folder, variables):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return commands.Command([sys.executable, *arguments], cwd=folder, env=os.environ | variables, **pipes)


@pytest.mark.long
@pytest.mark.timeout(600)  # on a busy machine
def test_the_first_hour_runs_as_it_stands(tmp_path):
    """One test, as its steps build on each other."""
    import_or_skip("timm")
    reader = Reader(tmp_path)
    for step in manual_pages.steps(PAGE):
        reader.follow(step)
    recipe, settings, script, weights, init, stopped, resumed, extended, export, features = reader.printed

    runs = {path.name: RunFolder(path) for path in (tmp_path / "runs").iterdir()}
    methods = {name: run.config().method for name, run in runs.items()}
    assert set(methods) == {"small", "set", "python", "init", "long"}
    assert methods["small"].encoder.width == 64
    assert methods["set"].encoder.depth == 6
    assert methods["set"].masker.ratios == methods["python"].masker.ratios == (0.6,)
    assert "Wrote runs/small/" in recipe
    assert "Wrote runs/set/" in settings
    assert "at the first step" in script
    assert "test_vit.pth" in init
    assert runs["init"].init_report.is_file()
    assert "stopped by SIGINT after step" in stopped
    assert "resuming runs/long at step" in resumed
    assert "extending runs/long from step 60 to 70" in extended
    assert [record["step"] for record in jsonl.read(runs["long"].path / "metrics.jsonl")][-2:] == [60, 70]
    assert "timm.create_model" in export
    assert weights == features == ""

    model = MIM(runs["long"].config().method)
    model.load_state_dict(checkpoints.newest_intact(runs["long"].checkpoints).model)
    expected = own_features(model, Image.fromarray(chelsea()))
    torch.testing.assert_close(torch.load(tmp_path / "features.pt", weights_only=True), expected, rtol=1e-4, atol=1e-5)
