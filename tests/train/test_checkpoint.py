"""Checkpoints are whole, checked, and pruned; nothing in them is ever run."""

import hashlib
import json
import os
import pickle
import sys
from pathlib import Path

import commands
import pytest
import torch

import bimkern
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.store import Checkpoint, CheckpointError


def make(step):
    return Checkpoint(
        step=step,
        model={"w": torch.randn(3, 4), "b": torch.randn(4).bfloat16()},
        optimizer={"w/exp_avg": torch.randn(3, 4), "w/step": torch.tensor(float(step))},
        state={"best": {"step": step, "loss": 0.5}},
    )


def save(folder, *steps, best_step=0):
    made = [make(step) for step in steps]
    for checkpoint in made:
        checkpoints.save(folder, checkpoint, best_step=best_step)
    return made


def test_round_trip_is_exact(tmp_path):
    (saved,) = save(tmp_path, 7)
    loaded = checkpoints.load_latest(tmp_path)
    assert (loaded.step, loaded.state) == (saved.step, saved.state)
    for ours, theirs in ((saved.model, loaded.model), (saved.optimizer, loaded.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoints.load_latest(tmp_path) is None


def test_the_last_two_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, best_step=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_bit_is_found_and_the_previous_checkpoint_taken(tmp_path, name, caplog):
    save(tmp_path, 1, 2)
    damaged = tmp_path / "step-00000002" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert checkpoints.load_latest(tmp_path).step == 1
    assert f"step-00000002/{name} is damaged" in caplog.text
    assert "step-00000001 instead" in caplog.text


def test_damaged_checkpoints_beyond_the_new_one_do_not_push_it_out(tmp_path):
    save(tmp_path, 100, 200, 300)
    for step in (200, 300):
        (tmp_path / f"step-{step:08d}" / "model.safetensors").write_bytes(b"damaged")
    save(tmp_path, 100)  # it was pruned as the oldest; the run went on from it
    save(tmp_path, 120)
    assert checkpoints.load_latest(tmp_path).step == 120
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100", "step-00000120"]


def test_a_truncated_or_missing_file_is_found(tmp_path):
    save(tmp_path, 1, 2, 3)
    (tmp_path / "step-00000003" / "manifest.json").write_text("{")
    (tmp_path / "step-00000002" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="step-00000003 is damaged"):
        checkpoints.load(tmp_path / "step-00000003")
    with pytest.raises(CheckpointError, match=r"no intact checkpoint is left: .*step-00000003.*step-00000002"):
        checkpoints.load_latest(tmp_path)


def test_what_a_killed_save_left_is_not_believed_and_is_cleaned_up(tmp_path):
    save(tmp_path, 1)
    litter = tmp_path / ".writing-step-00000002"
    litter.mkdir()
    (litter / "model.safetensors").write_bytes(b"half")
    assert checkpoints.load_latest(tmp_path).step == 1
    assert not litter.exists()


def test_a_step_can_be_saved_again(tmp_path):
    save(tmp_path, 1)
    (again,) = save(tmp_path, 1)
    assert torch.equal(checkpoints.load_latest(tmp_path).model["w"], again.model["w"])


def test_a_hundred_kills_in_the_middle_of_saving_leave_a_checkpoint_and_no_litter(tmp_path):
    command = [sys.executable, Path(__file__).parents[1] / "helpers/killed_savers.py", tmp_path, "100"]
    environment = os.environ | {"PYTHONPATH": str(Path(bimkern.__file__).parents[1])}  # this bimkern, not another
    done = commands.run(command, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20  # kills that left something to clean up


def test_all_is_on_the_disk_before_it_is_renamed_and_the_renaming_after(tmp_path, monkeypatch):
    """A power cut cannot be had, so the calls are recorded, each with the sizes of the files as it is made."""
    events, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append((path, path.stat().st_size if path.is_file() else sorted(p.name for p in path.iterdir())))
        fsync(descriptor)

    def recorded_replace(source, target):
        events.append((source, target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    save(tmp_path, 1)
    final, scratch = tmp_path / "step-00000001", tmp_path / ".writing-step-00000001"
    names = sorted(path.name for path in final.iterdir())
    assert len(names) == 4
    renamed = events.index((scratch, final))
    assert {(scratch / name, (final / name).stat().st_size) for name in names} == set(map(tuple, events[: renamed - 1]))
    assert events[renamed - 1] == (scratch, names)
    assert events[renamed + 1 :] == [(tmp_path, ["step-00000001"])]


class Payload:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def put(checkpoint, name, content):
    """Replace a file of a checkpoint, and make the manifest fit."""
    (checkpoint / name).write_bytes(content)
    if name != "manifest.json":
        sums = json.loads((checkpoint / "manifest.json").read_text())
        sums[name] = hashlib.sha256(content).hexdigest()
        (checkpoint / "manifest.json").write_text(json.dumps(sums))


PICKLES = {
    "pickle": (
        lambda payload, path: path.write_bytes(pickle.dumps(payload)),
        lambda path: pickle.loads(path.read_bytes()),
    ),
    "torch": (torch.save, lambda path: torch.load(path, weights_only=False)),
}


@pytest.mark.parametrize(("write", "unpickle"), PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(tmp_path, name, write, unpickle, caplog):
    write({"w": Payload(tmp_path / "ran")}, tmp_path / "pickle")
    save(tmp_path / "run", 1, 2)
    put(tmp_path / "run" / "step-00000002", name, (tmp_path / "pickle").read_bytes())
    assert checkpoints.load_latest(tmp_path / "run").step == 1
    assert "step-00000002 is damaged" in caplog.text
    assert "step-00000001 instead" in caplog.text
    put(tmp_path / "run" / "step-00000001", name, (tmp_path / "pickle").read_bytes())
    with pytest.raises(CheckpointError, match=r"\Ano intact checkpoint is left: .*\Z"):
        checkpoints.load_latest(tmp_path / "run")
    assert not (tmp_path / "ran").exists()
    unpickle(tmp_path / "pickle")
    assert (tmp_path / "ran").exists()  # it would have run


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("state.json", b"[]", "it must say which step it is of"),
        ("state.json", b'{"step": "1"}', "it must say which step it is of"),
        ("state.json", b"[" * 10**5, "recursion"),
        ("manifest.json", b"{}", "it must name the three other files"),
        ("manifest.json", b'{"../../secret": "0"}', "it must name the three other files"),
        ("model.safetensors", (2**60).to_bytes(8, "little") + b"{}", "header"),
    ],
)
def test_other_nonsense_is_refused_in_one_line(tmp_path, name, content, reason):
    save(tmp_path, 1)
    put(tmp_path / "step-00000001", name, content)
    with pytest.raises(CheckpointError, match=rf"\A.*step-00000001.* is damaged \(.*{reason}.*\)\Z"):
        checkpoints.load(tmp_path / "step-00000001")


def test_a_path_that_is_no_utf8_is_said_and_no_damage(tmp_path, monkeypatch):
    other = tmp_path / os.fsdecode(b"run \xff")
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", 1)
    (tmp_path / "run").rename(other)
    with pytest.raises(CheckpointError, match=r"left: .* \udcff/step-00000001 cannot be read: its path is not UTF-8"):
        checkpoints.load_latest(other)
    monkeypatch.chdir(other)
    assert checkpoints.load_latest(Path()).step == 1  # by another path, there is nothing wrong with it


def test_a_checkpoint_that_cannot_be_deleted_is_named(tmp_path, caplog):
    save(tmp_path, 1, 2)
    (tmp_path / ".writing-step-00000001").write_text("a file in the way")
    save(tmp_path, 3)
    assert "step-00000001 is no longer needed and cannot be deleted" in caplog.text
    assert checkpoints.newest_intact(tmp_path).step == 3
