"""Saves in the background equal those in the foreground, and never stand in each other's way."""

import signal
import threading
from dataclasses import replace

import pytest
import torch

from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.async_saver import AsyncSaver
from bimkern.train.checkpoint.pinned_buffer import PinnedBuffer
from bimkern.train.checkpoint.store import Checkpoint, CheckpointError
from bimkern.train.checkpoint.streamed import Streamed


def make(device, step=1):
    model = {"w": torch.randn(30, 40, device=device), "b": torch.randn(4, device=device).bfloat16()}
    optimizer = {"w/exp_avg": torch.randn(40, 30, device=device).T, "w/step": torch.tensor(float(step))}
    return Checkpoint(step, model, optimizer, {"images": "abc", "config": {"recipe": "one"}})


def nothing():
    pass


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def gate():
    """What holds a save back until it is opened; a test that fails must not leave it closed."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("reserved", [True, False])
def test_the_bytes_are_those_of_a_save_in_the_foreground(device, tmp_path, reserved):
    saved = [make(device, step) for step in (1, 2, 3)]
    with AsyncSaver(tmp_path / "background", every=1) as saver:
        if reserved:
            saver.reserve(saved[0].model, saved[0].optimizer)
        for loss, checkpoint in zip((0.5, 0.4, 0.6), saved, strict=True):
            saver.save(checkpoint, loss, first=nothing, required=False)
    for best, checkpoint in zip(({"step": 1, "loss": 0.5}, *[{"step": 2, "loss": 0.4}] * 2), saved, strict=True):
        whole = replace(checkpoint, state={"best": best} | checkpoint.state)
        checkpoints.save(tmp_path / "foreground", whole, best_step=best["step"])
    assert len(content(tmp_path / "foreground")) == 2 * 4
    assert content(tmp_path / "background") == content(tmp_path / "foreground")


def test_pictures_that_fail_end_no_run(tmp_path, caplog):
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.save(make("cpu"), 0.5, first=nothing, then=lambda: 1 // 0, required=True)
        assert saver.saved_step == 1
    assert "what follows the save of step 1 failed (ZeroDivisionError: " in caplog.text


def test_the_loop_may_continue_while_a_save_is_written(device, tmp_path, gate):
    checkpoint = make(device)
    before = {name: tensor.clone() for name, tensor in checkpoint.model.items()}
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.save(checkpoint, 0.5, first=gate.wait, required=False)
        for tensor in checkpoint.model.values():
            tensor.zero_()
        assert not list(tmp_path.iterdir())
        gate.set()
    loaded = checkpoints.load_latest(tmp_path).model
    assert all(torch.equal(loaded[name], tensor.cpu()) for name, tensor in before.items())


@pytest.mark.parametrize("live", [False, True])
def test_a_save_waits_only_for_what_the_next_step_changes(tmp_path, live):
    read, checkpoint = threading.Event(), make("cpu")
    momentum = checkpoint.optimizer["w/exp_avg"]

    def fetch():
        if live:
            assert not saved.is_set()
        else:
            assert saved.wait(60)
        read.set()
        return momentum

    saved = threading.Event()
    checkpoint.optimizer["w/exp_avg"] = Streamed(momentum.shape, momentum.dtype, fetch, live=live)
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.reserve(checkpoint.model, checkpoint.optimizer)
        saver.save(checkpoint, 0.5, first=nothing, required=False)
        assert read.is_set() == live
        saved.set()
    assert torch.equal(checkpoints.load_latest(tmp_path).optimizer["w/exp_avg"], momentum)


def test_a_save_waits_for_the_one_before(tmp_path, gate):
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.save(make("cpu", 1), 0.5, first=gate.wait, required=False)
        threading.Timer(0.1, gate.set).start()
        saver.save(make("cpu", 2), 0.5, first=lambda: (tmp_path / "step-00000001").stat(), required=True)
        assert (tmp_path / "step-00000002").is_dir()


def test_tensors_may_come_change_shape_and_go(tmp_path):
    first, second = make("cpu", 1), make("cpu", 2)
    del second.model["b"]
    second.model["w"] = torch.randn(3, 3)
    second.optimizer["new"] = torch.randn(5)
    with AsyncSaver(tmp_path, every=1) as saver:
        for checkpoint in (first, second):
            saver.save(checkpoint, 0.5, first=nothing, required=False)
    loaded = checkpoints.load_latest(tmp_path)
    for ours, theirs in ((second.model, loaded.model), (second.optimizer, loaded.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_failed_save_is_a_warning_and_never_the_best(tmp_path, caplog):
    (tmp_path / ".writing-step-00000002").write_text("a file in the way of the folder")
    with AsyncSaver(tmp_path, every=7) as saver:
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4)):
            saver.save(make("cpu", step), loss, first=nothing, required=False)
    assert "step-00000002 cannot be written" in caplog.text
    assert "training continues, the next save is after 7 steps" in caplog.text
    assert saver.best == {"step": 3, "loss": 0.4}
    assert [checkpoints.load(path).step for path in sorted(tmp_path.glob("step-*"))] == [1, 3]


def test_a_required_save_that_keeps_failing_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("bimkern.train.checkpoint.async_saver._PAUSES", (0.01, 0.01))
    (tmp_path / ".writing-step-00000009").write_text("a file in the way of the folder")
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.save(make("cpu", 4), 0.5, first=nothing, required=True)
        with pytest.raises(CheckpointError, match=r"step-00000009 cannot be written .*; nothing saved since step 4"):
            saver.save(make("cpu", 9), 0.5, first=nothing, required=True)


def test_what_else_goes_wrong_in_the_background_is_raised_in_the_loop(tmp_path):
    saver = AsyncSaver(tmp_path, every=1)
    saver.save(make("cpu"), 0.5, first=lambda: 1 // 0, required=False)
    with pytest.raises(ZeroDivisionError):
        saver.save(make("cpu"), 0.5, first=nothing, required=False)
    saver.wait()


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    with AsyncSaver(tmp_path, every=1) as saver:
        for step, loss in ((1, float("nan")), (2, 0.5), (3, float("nan"))):
            saver.save(make("cpu", step), loss, first=nothing, required=True)
    assert saver.best == {"step": 2, "loss": 0.5}


def test_the_best_is_sought_again_under_other_conditions(tmp_path):
    found = []
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.best = {"step": 1, "loss": 0.1}  # of a program that knew no conditions
        for step, loss, size in ((2, 0.5, 32), (3, 0.6, 32), (4, 0.4, 32), (5, 0.9, 64), (6, float("nan"), 96)):
            conditions = {"frozen_stages": 0, "image_size": size}
            saver.save(make("cpu", step), loss, conditions=conditions, first=nothing, required=True)
            found.append(saver.best["step"])
    assert found == [2, 2, 4, 5, 5]
    assert saver.best == {"step": 5, "loss": 0.9, "frozen_stages": 0, "image_size": 64}


def leave_while_saving(folder, gate, exception):
    """Leave the context with an exception while the save of step 2 is held back; the gate opens a little later."""
    with AsyncSaver(folder, every=1) as saver:
        saver.save(make("cpu", 1), 0.5, first=nothing, required=True)
        saver.save(make("cpu", 2), 0.5, first=gate.wait, required=False)
        threading.Timer(0.1, gate.set).start()
        raise exception


@pytest.mark.parametrize(
    ("exception", "left"),
    [(RuntimeError, ["step-00000001", "step-00000002"]), (KeyboardInterrupt, ["step-00000001"])],
    ids=["a fault lets it finish", "an interrupt ends it"],
)
def test_leaving_by_an_exception_leaves_no_thread_and_no_half_of_a_save(tmp_path, gate, exception, left):
    with pytest.raises(exception):
        leave_while_saving(tmp_path, gate, exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert "bimkern saver" not in {thread.name for thread in threading.enumerate()}


def test_an_interrupt_while_the_loop_waits_ends_the_save(tmp_path, gate):
    saver = AsyncSaver(tmp_path, every=1)
    saver.save(make("cpu"), 0.5, first=gate.wait, required=False)
    threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(KeyboardInterrupt):
        saver.wait()
    assert not list(tmp_path.iterdir())


def test_without_memory_for_a_copy_the_loop_waits_for_saves(tmp_path, monkeypatch, caplog):
    def no_memory(*arguments, **options):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(PinnedBuffer, "_buffer", no_memory)
    saved = [make("cpu", step) for step in (1, 2)]
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.reserve(saved[0].model, saved[0].optimizer)
        for checkpoint in saved:
            before = checkpoint.model["w"].clone()
            saver.save(checkpoint, 0.5, first=nothing, required=False)
            checkpoint.model["w"].zero_()
            assert torch.equal(checkpoints.load_latest(tmp_path).model["w"], before)
    assert caplog.text.count("no memory to copy checkpoints to (can't allocate memory)") == 1


def test_a_required_save_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("bimkern.train.checkpoint.async_saver._PAUSES", (0.05, 0.05))
    obstacle = tmp_path / ".writing-step-00000002"
    obstacle.write_text("a file in the way of the folder")
    tries = iter([nothing, nothing, obstacle.unlink])
    drawn = []
    with AsyncSaver(tmp_path, every=1) as saver:
        saver.save(
            make("cpu", 2), 0.5, first=lambda: next(tries)(), then=lambda: drawn.append("picture"), required=True
        )
    assert saver.saved_step == 2
    assert caplog.text.count("retrying in 0.05 s") == 2
    assert drawn == ["picture"]


def test_what_comes_after_a_save_comes_after_a_failed_one_too(tmp_path):
    (tmp_path / ".writing-step-00000001").write_text("a file in the way of the folder")
    left = []
    with AsyncSaver(tmp_path, every=1) as saver:
        for step in (1, 2):
            saver.save(
                make("cpu", step),
                0.5,
                first=nothing,
                then=lambda: left.append(sorted(path.name for path in tmp_path.glob("step-*"))),
                required=False,
            )
    assert left == [[], ["step-00000002"]]
