"""Loggers get every record once, whatever happens to the run or to them, and never hold it up."""

import csv
import importlib
import json
import os
import sys
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
from disk import full_disk
from growing import write_photos
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bimkern import pieces
from bimkern.pretrain import main
from bimkern.train.config.run import ConfigError
from bimkern.train.pretraining import Pretraining
from bimkern.train.reporting.loggers import follower
from bimkern.train.reporting.loggers.builtin import CSV
from bimkern.train.reporting.loggers.logger import LoggedRun, Logger, choose
from bimkern.train.reporting.loggers.wandb import Wandb
from bimkern.train.reporting.metrics import Metrics
from bimkern.train.reporting.pictures import KeptPictures
from bimkern.train.reporting.scalars import finite_numbers, hyperparameters
from bimkern.train.reporting.tensorboard import TensorBoard


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", count=3)


def train(photos, out, *options):
    fixed = ("--workers", "0", "--log-every", "1", "--device", "cpu", "--steps", "6", "--save-every", "2")
    main(["bim_vit_test", "--data", str(photos), "--out", str(out), *fixed, *options])


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def numbers(record):
    return {name: value for name, value in finite_numbers(record).items() if name != "step"}


def fail_at(monkeypatch, index):
    """Have the process of a run end in a step."""
    step = Pretraining.step

    def failing(task, i, *rest):
        if i == index:
            raise RuntimeError("killed")
        return step(task, i, *rest)

    monkeypatch.setattr(Pretraining, "step", failing)


@pytest.mark.usefixtures("standins")
def test_every_record_is_logged_once_whatever_happens_to_the_run(photos, tmp_path, monkeypatch):
    wandb, mlflow = importlib.import_module("wandb"), importlib.import_module("mlflow")
    out, services = tmp_path / "run", ("--log", "wandb", "mlflow")
    with monkeypatch.context() as patch:
        fail_at(patch, 5)
        with pytest.raises(RuntimeError, match="killed"):
            train(photos, out, *services)
    assert [record["step"] for record in records(out)] == [1, 2, 3, 4, 5]
    train(photos, out, *services)
    train(photos, out, "--log", "csv", "wandb")  # a logger that is new to a finished run gets its history

    expected = [(record["step"], numbers(record)) for record in records(out)]
    assert [step for step, _ in expected] == [1, 2, 3, 4, 5, 6]
    pictures = [(step, f"reconstruction-{step:08d}.png") for step in (2, 4, 6)]
    config = hyperparameters(json.loads((out / "config.json").read_text()))

    (run,) = wandb.runs.values()
    assert [item for item in run.logged if "reconstruction" not in item[1]] == expected
    shown = [(step, data["reconstruction"]) for step, data in run.logged if "reconstruction" in data]
    assert [(step, os.path.basename(image.path)) for step, image in shown] == pictures
    assert (run.name, run.finished) == ("run", 3)
    assert config.items() >= {**run.config, "run.log.0": "csv", "run.log.1": "wandb"}.items()

    (run,) = mlflow.runs.values()
    assert [(m.step, m.key, m.value) for m in run.metrics] == [
        (step, name, value) for step, values in expected for name, value in values.items()
    ]
    assert run.artifacts == [f"pictures/{name}" for _, name in pictures]
    assert run.info.status == "FINISHED"
    assert run.params["method.encoder.depth"] == str(config["method.encoder.depth"])

    with (out / "metrics.csv").open(newline="") as file:
        rows = [(int(row.pop("step")), {k: float(v) for k, v in row.items() if v}) for row in csv.DictReader(file)]
    assert rows == expected


@pytest.mark.usefixtures("standins")
def test_a_picture_is_named_by_what_it_shows(tmp_path):
    run = Wandb().open(LoggedRun(tmp_path, None))
    run.picture(3, tmp_path / "confusion-00000003.png")
    (logged,) = importlib.import_module("wandb").runs[run.id].logged
    assert (logged[0], list(logged[1])) == (3, ["confusion"])


def test_a_folder_of_images_whose_name_is_no_utf8_is_shown_escaped(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    values = hyperparameters({"run": {"data": str(folder)}})
    assert values == {"run.data": f"{tmp_path}/caf\\udce9"}
    TensorBoard(tmp_path / "events").hyperparameters(values, "loss")  # which is UTF-8 alone


def test_tensorboard_shows_pictures_over_time_and_hyperparameters(photos, tmp_path):
    train(photos, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = events.Images("reconstruction")
    assert [image.step for image in shown] == [2, 4, 6]
    with Image.open(tmp_path / "run" / "pictures" / "reconstruction-00000006.png") as picture:
        assert (shown[-1].width, shown[-1].height) == picture.size
    assert events.PluginTagToContent("hparams").keys() == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
    }


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_package_that_is_missing_is_one_line_before_anything_begins(
    photos, tmp_path, monkeypatch, capsys, name, module
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as end:
        train(photos, tmp_path / "run", "--log", name)
    assert end.value.code == 2
    said = f"python -m bimkern.pretrain: --log {name}: not installed; pip install {module}\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_unknown_or_given_twice_is_one_line():
    with pytest.raises(ConfigError, match=r"^--log must name loggers, got 'wandbb'; choose wandb$"):
        choose(["csv", "wandbb"])
    with pytest.raises(ConfigError, match=r"^--log names csv twice; name it once$"):
        choose(["csv", "csv"])


class Service:
    """Takes what it is sent, unless it is told to fail or to hang."""

    id = "one"

    def __init__(self):
        self.sent, self.error = [], None
        self.answers, self.asked = threading.Event(), threading.Event()
        self.answers.set()

    def __call__(self, run):
        return self.open(run)

    def open(self, run):
        if self.error is not None:
            raise self.error
        return self

    def hyperparameters(self, values):
        self.sent.append(("config", values))

    def metrics(self, step, values):
        self.asked.set()
        assert self.answers.wait(60)
        if self.error is not None:
            raise self.error
        self.sent.append((step, values))

    def picture(self, step, path):
        self.sent.append((step, path.name))

    def close(self):
        self.sent.append("closed")


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def open_metrics(tmp_path, service):
    """Return a function that opens the metrics of a run which is logged to the service."""
    (tmp_path / "pictures").mkdir()

    def opened(after_step=0):
        pictures = KeptPictures(tmp_path / "pictures", num_steps=6)
        return Metrics(tmp_path, after_step=after_step, pictures=pictures, loggers={"own": service}, config={"a": 1.0})

    return opened


def log(metrics, *steps, loss=0.5):
    for step in steps:
        metrics.log({"step": step, "loss": loss})


def test_what_is_rolled_back_is_never_sent(open_metrics, service):
    metrics = open_metrics()
    log(metrics, 1, 2, 3, loss=0.5)
    metrics.publish(2)
    metrics.cut_back(2)
    log(metrics, 3, 4, loss=0.25)
    metrics.publish(4)
    log(metrics, 5, loss=0.1)  # no checkpoint covers it
    metrics.close()
    open_metrics(after_step=4).close()
    losses = [(step, {"loss": loss}) for step, loss in ((1, 0.5), (2, 0.5), (3, 0.25), (4, 0.25))]
    assert service.sent == [("config", {"a": 1.0}), *losses, "closed", "closed"]


def test_a_record_that_is_half_written_is_sent_when_it_is_whole(open_metrics, service, tmp_path):
    record, looked = b'{"step": 1, "loss": 0.5}\n', threading.Event()
    service.picture = lambda step, path: looked.set()  # it is sent after the records
    metrics = open_metrics()
    (tmp_path / "pictures" / "reconstruction-00000001.png").touch()
    with (tmp_path / "metrics.jsonl").open("ab", buffering=0) as file:
        file.write(record[:12])
        metrics.publish(1)
        assert looked.wait(60)
        file.write(record[12:])
    metrics.publish(1)
    metrics.close()
    assert (1, {"loss": 0.5}) in service.sent


def test_what_a_service_does_not_take_is_warned_of_once_and_sent_later(open_metrics, service, caplog):
    metrics = open_metrics()
    service.error = OSError("no route\nto host")
    for step in (1, 2):
        log(metrics, step)
        metrics.publish(step)
    metrics.close()
    (warning,) = caplog.messages
    assert warning == "the log of --log own cannot be written (no route to host); training continues"
    service.error = None
    metrics = open_metrics(after_step=2)
    metrics.publish(2)
    metrics.close()
    assert [item[0] for item in service.sent] == ["config", "c", 1, 2, "c"]


def test_a_service_that_hangs_holds_up_nothing(open_metrics, service, caplog, monkeypatch):
    monkeypatch.setattr(follower, "_CLOSING", 0.05)
    service.answers.clear()
    metrics = open_metrics()
    log(metrics, 1)
    metrics.publish(1)
    assert service.asked.wait(60)
    log(metrics, 2)
    metrics.publish(2)
    metrics.close()
    assert caplog.messages == ["--log own has not taken the last records; the same command sends them"]
    service.answers.set()


def test_a_service_that_cannot_begin_is_an_error_and_one_that_cannot_continue_a_warning(open_metrics, service, caplog):
    service.error = ValueError("no key\nLog in first")
    with pytest.raises(ConfigError, match=r"^--log own cannot begin a run \(no key\)$"):
        open_metrics()
    service.error = None
    open_metrics().close()
    service.error = ValueError("no route to host")
    metrics = open_metrics()
    log(metrics, 1)
    metrics.publish(1)
    metrics.close()
    assert caplog.messages == ["--log own cannot continue its run (no route to host); training continues"]


def test_pictures_come_after_the_metrics_of_their_step(open_metrics, service, tmp_path):
    metrics = open_metrics()
    for step in (1, 2, 3):
        log(metrics, step)
        Image.new("RGB", (3, 2)).save(tmp_path / "pictures" / "reconstruction.png")
        assert KeptPictures(tmp_path / "pictures", num_steps=6).keep(step) is not None
    metrics.publish(3)
    metrics.close()
    assert [item[0] for item in service.sent[1:-1]] == [1, 1, 2, 2, 3, 3]
    assert [item[1] for item in service.sent[2:-1:2]] == [f"reconstruction-{i:08d}.png" for i in (1, 2, 3)]


@pytest.mark.parametrize("saves", [1, 7, 100, 1000])
def test_one_picture_for_every_hundredth_of_a_run_is_kept(tmp_path, saves):
    (tmp_path / "reconstruction.png").write_bytes(b"png")
    pictures = KeptPictures(tmp_path, num_steps=saves * 5)
    kept = [step for step in range(5, saves * 5 + 1, 5) if pictures.keep(step) is not None]
    assert kept == list(range(5, saves * 5 + 1, 5 * max(1, saves // 100)))
    assert list(pictures.after(5)) == kept[1:]


def test_a_table_drops_a_torn_row_and_grows_a_column(tmp_path):
    table = CSV().open(LoggedRun(tmp_path, None))
    table.metrics(1, {"loss": 0.5})
    path = tmp_path / "metrics.csv"
    with path.open("a") as file:
        file.write("2,0.")
    table = CSV().open(LoggedRun(tmp_path, "metrics.csv"))
    with full_disk(path.stat().st_size + 2), pytest.raises(OSError, match="too large"):
        table.metrics(2, {"loss": 0.4})
    table.metrics(2, {"loss": 0.25, "held_out_loss_per_stage/1": 0.5})
    assert path.read_text().splitlines() == ["step,loss,held_out_loss_per_stage/1", "1,0.5,", "2,0.25,0.5"]


def test_an_own_logger_is_a_piece(monkeypatch):
    monkeypatch.setattr(pieces, "_NAMED", {kind: dict(known) for kind, known in pieces._NAMED.items()})

    @pieces.register(Logger)
    @dataclass(frozen=True)
    class Console:
        package: ClassVar[str | None] = None

        def open(self, run):
            return Service()

    assert choose(["console"]) == {"console": Console()}
