"""Checkpoints are whole, checked, and pruned."""

import pytest
import torch

from bimkern.train import checkpoint as checkpoints
from bimkern.train.checkpoint import Checkpoint, CheckpointError


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
