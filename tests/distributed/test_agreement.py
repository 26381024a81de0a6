"""What one rank meets with, all act on."""

import json
import os
import signal
import socket
import tarfile

import numpy as np
import pytest
from early_ranks import agree_in_turn
from PIL import Image
from rank_processes import RankProcesses
from safetensors.torch import load_file
from shared_runs import (
    Deleting,
    Terminating,
    config_of,
    nan_from_step_3_on,
    nan_in_stage_3,
    out_of_memory,
    records,
    train_with,
)

from bimkern.data.batches import step_draw_ids
from bimkern.data.sources.find import find_source
from bimkern.pretrain import main
from bimkern.train import training
from bimkern.train.run import run

pytestmark = pytest.mark.usefixtures("without_pictures")

NAME = "bim_vit_test"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    """Return the losses of 12 steps of one process."""
    out = tmp_path_factory.mktemp("plain")
    run(config_of(NAME, out, photos, steps=12))
    return losses(out)


def losses(out):
    return [record["loss_per_stage"] for record in records(out)]


def same(found, expected):
    return np.asarray(found) == pytest.approx(np.asarray(expected), rel=1e-5)


def start(fault, size, tmp_path, photos, **options):
    """Start ranks, the second of which meets with a fault."""
    return RankProcesses(train_with, size, tmp_path / "output", fault, 1, NAME, tmp_path / "run", photos, options)


def test_a_gradient_that_is_not_finite_on_one_rank_skips_that_stage_on_all(photos, plain, tmp_path):
    first, second = start(nan_in_stage_3, 2, tmp_path, photos, steps=12).results()
    assert first == second
    assert np.isfinite(first).all()
    found = records(tmp_path / "run")
    assert [record["skipped_updates"] for record in found] == [[0] * 4] * 3 + [[0, 0, 1, 0]] * 9  # a line late
    assert [stages[:2] for stages in losses(tmp_path / "run")] == [
        pytest.approx(stages[:2], rel=1e-5) for stages in plain
    ]  # the stages below never notice


def test_the_batch_that_one_rank_diverges_on_is_kept_as_a_whole(photos, tmp_path):
    """Ten updates are skipped, from the third on: those are checked with every line of the metrics."""
    ranks = start(nan_from_step_3_on, 2, tmp_path, photos, steps=20)
    assert ranks.wait() == [1, 1]
    assert "no finite gradient for 10 updates, up to step 12" in "".join(ranks.stderr())
    (dump,) = (tmp_path / "run").glob("diverged-step-*.safetensors")
    assert dump.stem == "diverged-step-00000012"
    kept = load_file(dump)
    config = config_of(NAME, tmp_path, photos, steps=20)
    assert kept["draw_ids"].equal(step_draw_ids(config.step_layout(8), 11, 8, config.run.seed))
    assert len(kept["images"]) == 7


def test_a_rank_without_memory_has_all_take_smaller_micro_batches(photos, plain, tmp_path):
    ranks = start(out_of_memory, 2, tmp_path, photos, steps=12)
    first, second = ranks.results()
    assert first == second
    assert "continuing with --micro-batch 1, the batch stays" in "".join(ranks.stderr())
    assert same(losses(tmp_path / "run"), plain)


def test_a_file_that_one_rank_cannot_read_is_quarantined_for_all(photos, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for file in photos.iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    name = sorted(file.name for file in data.iterdir())[6]
    ranks = start(Deleting(5, data / name), 2, tmp_path, data, steps=24, batch_size=8, max_bad_ratio=0.5)
    first, second = ranks.results()
    assert first == second
    (entry,) = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert entry["file"] == name  # which every step reads, on either rank
    assert 5 <= entry["step"] < 24  # the search for a bottleneck loads up to nine steps ahead
    assert records(tmp_path / "run")[-1]["images_quarantined"] == 1


def test_stopped_runs_resume_with_other_numbers_of_ranks(photos, plain, tmp_path):
    for size, step in ((2, 4), (4, 8)):
        ranks = start(Terminating(step), size, tmp_path, photos, steps=12)
        assert ranks.wait() == [1] * size  # what is raised in Python
        stopped = [text for text in ranks.stderr() if f"Stopped: stopped by SIGTERM after step {step}" in text]
        assert len(stopped) == size
        assert max((tmp_path / "run" / "checkpoints").iterdir()).name == f"step-{step:08d}"
    run(config_of(NAME, tmp_path / "run", photos, steps=12))
    assert same(losses(tmp_path / "run"), plain)


def test_a_signal_to_one_rank_ends_all_with_its_exit_code(photos, tmp_path):
    arguments = [NAME, "--data", str(photos), "--out", str(tmp_path / "run"), "--steps", "10000", "--workers", "0"]
    ranks = RankProcesses(main, 2, tmp_path / "output", [*arguments, "--log-every", "1", "--save-every", "20000"])
    ranks.wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").is_file() and len(records(tmp_path / "run")) > 2)
    os.kill(ranks.processes[1].pid, signal.SIGINT)
    assert ranks.wait() == [130, 130]
    lines = [line for line in "".join(ranks.stderr()).splitlines() if not line.startswith("WARNING")]
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.startswith("python -m bimkern.pretrain: stopped by SIGINT after step ")
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) == records(tmp_path / "run")[-1]["step"]


def ended(arguments, tmp_path, ranks=(0, 1), **options):
    """Run the command on two ranks, each with its arguments; return the exit codes and what all say on stderr."""
    processes = RankProcesses(command_of, 2, tmp_path / "output", arguments, tmp_path / "run", ranks=ranks, **options)
    return processes.wait(), "".join(processes.stderr())


def command_of(arguments, out):
    mine = arguments[int(os.environ["RANK"])]
    main([NAME, "--out", str(out), "--steps", "2", "--workers", "0", "--dist-timeout", "60", *mine])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([["--batch-size", "1"]] * 2, "--batch-size 1: 2 ranks cannot share steps of 1 images; start fewer ranks"),
        ([["--seed", "0"], ["--seed", "1"]], "rank 1: rank 0 runs with other settings (run.seed: 0"),
        ([["--device", "cuda:7"]] * 2, "--device cuda:7: this machine offers"),
        ([["--micro-batch", "0"]] * 2, "--micro-batch must be at least 1, got 0"),
    ],
    ids=["more ranks than images", "unequal settings", "no device", "an option"],
)
def test_a_mistake_is_one_line_of_all_ranks(tmp_path, arguments, message):
    codes, error = ended(arguments, tmp_path)
    assert codes == [2, 2]
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_unequal_images_are_refused(photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in photos.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    Image.new("RGB", (40, 50)).save(other / "3.png")
    codes, error = ended([["--data", str(photos)], ["--data", str(other)]], tmp_path)
    assert codes == [2, 2]
    expected = f"rank 1: --data {other} has other images than rank 0: 1 with other content (3.png); give all ranks the"
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_what_all_ranks_find_in_the_data_is_logged_once(tmp_path, monkeypatch, caplog, rank, times):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("/absolute.jpg"))
        tar.addfile(tarfile.TarInfo("0.jpg"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    training.find_inputs(config_of("mae_vit_test", tmp_path), find_source(tmp_path / "x.tar"))
    assert caplog.text.count("/absolute.jpg: an absolute path; left out") == times


def test_a_port_in_use_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        codes, error = ended([[], []], tmp_path, ranks=(0,), variables={"MASTER_PORT": f"{port}"})
    assert codes == [2]
    assert f"the 2 ranks cannot connect at 127.0.0.1:{port} (the port is in use); choose another --master-port" in error
    assert error.count("\n") == 1


def test_a_rank_may_begin_its_next_run_before_rank_0_has_ended_the_last(tmp_path):
    assert RankProcesses(agree_in_turn, 2, tmp_path, 3).results() == [[[0, 0], [1, 1], [2, 2]]] * 2
