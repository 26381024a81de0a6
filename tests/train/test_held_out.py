"""Images that --held-out keeps out of training: always the same ones, and what a run says of them."""

import json
import re

import pytest
import torch
from growing import write_photos

from bimkern.data.held_out import are_held_out
from bimkern.data.names import Names
from bimkern.data.pil import PilLoader
from bimkern.mim import evaluation
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train.pretraining import Pretraining

pytestmark = pytest.mark.usefixtures("pictures_on_request")

SHARE = 0.4
NAMES = [f"{i:02d}.png" for i in range(11)]
HELD_OUT = set(Names.of(NAMES).where(are_held_out(Names.of(NAMES), SHARE)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = write_photos(tmp_path_factory.mktemp("files") / "photos", count=len(NAMES))
    for path, name in zip(sorted(folder.iterdir()), NAMES, strict=True):
        path.rename(folder / name)
    return folder


def train(photos, out, *options):
    fixed = ("--workers", "0", "--log-every", "3", "--device", "cpu", "--steps", "4", "--save-every", "2")
    main(["mae_vit_test", "--data", f"{photos}", "--out", f"{out}", *fixed, "--held-out", f"{SHARE}", *options])


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_share_is_close_to_what_is_asked_for_and_grows_with_it():
    names = Names.of(f"{i}.jpg" for i in range(10_000))
    small, large = (set(names.where(are_held_out(names, share))) for share in (0.02, 0.1))
    assert 150 < len(small) < 250
    assert small < large
    assert not are_held_out(names, 0.0).any()


def test_a_run_never_trains_on_them_and_logs_their_loss(photos, tmp_path, monkeypatch, capsys):
    assert 2 < len(HELD_OUT) < 8
    read, batches = set(), PilLoader.batches

    def watched(loader, data, first, last):
        read.update(data.images.files)
        return batches(loader, data, first, last)

    monkeypatch.setattr(PilLoader, "batches", watched)
    load = Pretraining._load_held_out

    def evaluated(task, images):
        found = load(task, images)
        assert read == HELD_OUT
        read.clear()
        return found

    monkeypatch.setattr(Pretraining, "_load_held_out", evaluated)
    train(photos, tmp_path / "run")
    assert read == set(NAMES) - HELD_OUT
    recorded = {record["file"] for record in lines(tmp_path / "run" / "images.jsonl") if record.get("held_out")}
    assert recorded == HELD_OUT
    logged = {record["step"]: record.get("held_out_loss_per_stage") for record in records(tmp_path / "run")}
    assert [step for step, losses in logged.items() if losses is not None] == [2, 4]
    printed = capsys.readouterr().out
    assert f"{len(NAMES) - len(HELD_OUT)} images from {photos}, {len(HELD_OUT)} more held out; " in printed
    assert "Loss on what is masked, images kept out of training:" in printed
    loss, mean = re.search(r"after layer 4  (\S+); the mean visible target would give (\S+)", printed).groups()
    assert float(loss) == pytest.approx(logged[4][0], rel=1e-2)
    assert float(mean) == pytest.approx(1, abs=0.05)  # of targets that are normalized


def test_a_dry_run_counts_epochs_of_the_images_to_train_on(photos, tmp_path, capsys):
    said = []
    for options in ((), ("--dry-run",)):
        train(photos, tmp_path / "run", *options)
        said.append(re.search(r", after (\S+) of (\S+) epochs", capsys.readouterr().out).groups())
    assert said[0] == said[1]


def test_a_resumed_run_evaluates_the_same(photos, tmp_path):
    train(photos, tmp_path / "whole")
    first = records(tmp_path / "whole")
    (tmp_path / "whole" / "checkpoints" / "step-00000004" / "manifest.json").unlink()
    train(photos, tmp_path / "whole")
    assert [r.get("held_out_loss_per_stage") for r in records(tmp_path / "whole")] == [
        r.get("held_out_loss_per_stage") for r in first
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--held-out", "1"), r"--held-out must be in \[0, 1\), got 1.0"),
        (("--held-out", "0.000001"), "--held-out 1e-06 leaves none of 11 images for evaluation; change it"),
        (("--held-out", "0.9999"), "--held-out 0.9999 leaves none of 11 images for training; change it"),
    ],
)
def test_a_share_of_nothing_or_everything_is_one_line(photos, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        main(["mae_vit_test", "--data", f"{photos}", "--out", f"{tmp_path / 'run'}", "--workers", "0", *options])
    assert end.value.code == 2
    assert re.fullmatch(f"python -m bimkern.pretrain: {message}\n", capsys.readouterr().err)


def test_another_share_is_another_run(photos, tmp_path, capsys):
    train(photos, tmp_path / "run")
    with pytest.raises(SystemExit):
        main(
            ["mae_vit_test", "--data", f"{photos}", "--out", f"{tmp_path / 'run'}", "--steps", "4", "--held-out", "0.5"]
        )
    assert "run.held_out: 0.4 before, 0.5 now" in capsys.readouterr().err


def test_the_demo_holds_out_its_own(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--out", f"{tmp_path / 'run'}", "--held-out", "0.1"])
    said = "python -m bimkern.pretrain: --held-out 0.1: the data holds out images of its own; leave it out\n"
    assert capsys.readouterr().err == said


class Idle:
    def scale(self, loss):
        return loss

    def apply(self):
        pass


@pytest.mark.parametrize("name", ["mae_vit_test", "bim_vit_test", "localmim_vit_test", "simmim_vit_test"])
def test_the_loss_is_that_of_training_however_it_is_cut(name):
    config = RECIPES[name].config
    model = MIM(config.method)
    size = config.method.encoder.image_size.height
    images = torch.randint(256, (5, 3, size, size), dtype=torch.uint8)
    ids = torch.arange(5)
    flow = config.method.flow
    updates = [Idle() for _ in flow.partition(model)]
    trained = flow.step(model, [MicroBatch(images, model.views(images, ids, 0))], updates)
    whole, mean = evaluation.losses(model, images, ids, seed=0, micro_batch=5)
    parts, mean_of_parts = evaluation.losses(model, images, ids, seed=0, micro_batch=2)
    torch.testing.assert_close(whole.to(trained), trained)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(mean_of_parts, mean, rtol=1e-5, atol=0)


def test_the_mean_visible_target_of_a_plain_image_is_right():
    method = RECIPES["simmim_vit_test"].config.method
    size = method.encoder.image_size.height
    images = torch.full((2, 3, size, size), 100, dtype=torch.uint8)
    _, mean = evaluation.losses(MIM(method), images, torch.arange(2), seed=0, micro_batch=2)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
