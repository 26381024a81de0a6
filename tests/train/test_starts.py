"""config.json says what every start of a run was resolved to, and resuming does not compare it."""

import json
import shutil

import pytest
import torch
from growing import write_photos

import bimkern
from bimkern import versions
from bimkern.pretrain import main
from bimkern.train.config.serialize import from_json

pytestmark = pytest.mark.usefixtures("without_pictures")

COMMIT = "1234567890abcdef1234567890abcdef12345678"


def test_every_start_is_recorded_and_none_is_compared(tmp_path):
    photos, out = write_photos(tmp_path / "photos", count=3), tmp_path / "run"
    options = ["bim_vit_test", "--data", f"{photos}", "--out", f"{out}", "--steps", "2", "--save-every", "1"]
    options += ["--device", "cpu", "--workers", "0"]
    main(options)
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    main([*options, "--micro-batch", "4"])
    main(options)  # a finished run starts nothing
    saved = json.loads((out / "config.json").read_text())
    first, second = saved["starts"]
    assert (first["step"], first["micro_batch"], second["step"], second["micro_batch"]) == (0, 8, 1, 4)
    for start in (first, second):
        assert start["peak_lr"] == from_json(saved).run.peak_lr
        assert start["device"] == "cpu"
        assert start["loader"] == "PilLoader(workers=0, pin_memory=False)"
        assert start["versions"]["torch"] == torch.__version__
        assert start["versions"]["bimkern"] == bimkern.__version__
        assert start["commit"] == versions.commit()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {".git/HEAD": f"{COMMIT}\n"},
        {".git/HEAD": "ref: refs/heads/a.b\n", ".git/refs/heads/a.b": f"{COMMIT}\n"},
        {
            ".git/HEAD": "ref: refs/heads/a.b\n",
            ".git/packed-refs": f"# pack\n{'0' * 40} refs/heads/aab\n{COMMIT} refs/heads/a.b\n",
        },
        {
            ".git": "gitdir: main/worktrees/own\n",
            "main/worktrees/own/HEAD": "ref: refs/heads/own\n",
            "main/worktrees/own/commondir": "../..\n",
            "main/refs/heads/own": f"{COMMIT}\n",
        },
    ],
    ids=["detached", "branch", "packed", "worktree"],
)
def test_the_commit_is_read_from_files(tmp_path, files):
    for name, text in files.items():
        write(tmp_path / name, text)
    assert versions.commit(tmp_path) == COMMIT


@pytest.mark.parametrize("head", [None, "ref: refs/heads/unborn\n"])
def test_without_a_commit_there_is_none(tmp_path, head):
    if head is not None:
        write(tmp_path / ".git" / "HEAD", head)
        write(tmp_path / ".git" / "packed-refs", "")
    assert versions.commit(tmp_path) is None
