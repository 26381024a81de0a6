"""Runs that start from weights: they train from them, account for them, and resume without them."""

import json
import shutil

import pytest
import torch
from growing import repeatable, train, write_photos
from safetensors.torch import load_file, save_file

from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD, MIM
from bimkern.models.exported import load_encoder
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints

pytestmark = pytest.mark.usefixtures("without_pictures")

RECIPE = "mae_vit_test"
LR_0 = ("--base-lr", "1e-30")  # a step of which changes no weight


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", count=11)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in timm's layout, for larger images: positions of its own, on 8 x 8 patches."""
    path = tmp_path_factory.mktemp("weights") / "timm.safetensors"
    method = RECIPES[RECIPE].config.method
    layout, state = method.encoder.layout("timm"), MIM(method).encoder.state_dict()
    found = {layout.name(name): torch.randn_like(tensor) * 0.1 for name, tensor in state.items()}
    norm = {"norm.weight": torch.randn(32), "norm.bias": torch.randn(32)}
    save_file(found | norm | {"pos_embed": torch.randn(1, 65, 32), "head.bias": torch.zeros(9)}, path)
    return path


@pytest.fixture(scope="module")
def run(photos, weights, tmp_path_factory):
    """A run of four steps that began from these weights."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(RECIPE, photos, out, "--steps", "4", "--save-every", "2", "--init", str(weights))
    return out


def model_of(out):
    return checkpoints.load_latest(out / "checkpoints").model


def refused(capsys, photos, out, *options):
    """The line with which a command ends in exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(RECIPE, photos, out, "--steps", "4", "--save-every", "2", *map(str, options))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error


def test_a_run_begins_with_the_weights_and_tells_what_became_of_them(photos, weights, tmp_path, capsys):
    train(RECIPE, photos, tmp_path / "run", "--steps", "1", "--init", str(weights), *LR_0)
    model, given = model_of(tmp_path / "run"), load_file(weights)
    assert torch.equal(model["encoder.blocks.2.mlp.fc1.weight"], given["blocks.2.mlp.fc1.weight"])
    assert torch.equal(model["heads.0.in_norm.weight"], given["norm.weight"])
    report = json.loads((tmp_path / "run" / "init.json").read_text())
    assert report["path"] == str(weights)
    assert report["taken"]["encoder.patch_embed.bias"] == ["patch_embed.proj.bias"]
    assert report["resized"] == {"encoder.positions.table": {"from": [8, 8], "to": [4, 4]}}
    assert report["left"] == ["head.bias"]
    assert "heads.0.mask_token" in report["random"]
    told = "(timm names); taken: encoder 52, heads 2; encoder.positions.table resized from 8 x 8 to 4 x 4; left "
    assert told + "there: head 1; still random: heads 19; see" in capsys.readouterr().out


def test_positions_are_saved_and_exported_with_the_weights(run):
    model = model_of(run)
    encoder = load_encoder(run / "exported" / "backbone-depth04")
    assert torch.equal(encoder.positions.table, model["encoder.positions.table"])
    assert encoder.state_dict().keys() == {
        name.removeprefix("encoder.") for name in model if name.startswith("encoder.")
    }


@pytest.mark.parametrize("given", ["the same", "moved", "none"])
def test_a_run_resumes_bit_for_bit_with_the_weights_or_without_them(photos, weights, run, tmp_path, given):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    shutil.copy(weights, tmp_path / "moved.safetensors")
    paths = {"the same": weights, "moved": tmp_path / "moved.safetensors"}
    init = ["--init", str(paths[given])] if given in paths else []
    train(RECIPE, photos, out, "--steps", "4", "--save-every", "2", *init)
    assert repeatable(out) == repeatable(run)
    ours, theirs = model_of(out), model_of(run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    digests = [checkpoints.load_latest(path / "checkpoints").state["init"] for path in (out, run)]
    assert digests[0] == digests[1] == json.loads((run / "init.json").read_text())["sha256"]


def test_other_weights_are_refused(photos, weights, run, tmp_path, capsys):
    given = load_file(weights)
    save_file(given | {"norm.bias": given["norm.bias"] + 1}, tmp_path / "other.safetensors")
    error = refused(capsys, photos, run, "--init", tmp_path / "other.safetensors")
    wanted = f"was initialized from other weights than --init {tmp_path / 'other.safetensors'} holds now; leave --init"
    assert wanted in error


def test_weights_for_a_run_that_began_without_are_refused(photos, weights, tmp_path, capsys):
    train(RECIPE, photos, tmp_path / "run", "--steps", "4", "--save-every", "2")
    error = refused(capsys, photos, tmp_path / "run", "--init", weights)
    assert "was initialized at random; leave --init out to resume, or choose another --out" in error


def test_a_run_without_a_checkpoint_must_be_given_its_weights_again(photos, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    error = refused(capsys, photos, tmp_path / "run")
    assert f"--out {tmp_path / 'run'} began with --init and has no checkpoint yet; name it again" in error


def test_a_wrong_file_is_one_line_before_anything_is_written(photos, tmp_path, capsys):
    (tmp_path / "weights.pth").write_text("<html>")
    error = refused(capsys, photos, tmp_path / "run", "--init", tmp_path / "weights.pth")
    assert f"--init {tmp_path / 'weights.pth'} is a web page in place of the weights" in error
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_another_run(photos, run, tmp_path):
    train(RECIPE, photos, tmp_path / "next", "--steps", "1", "--init", str(run), *LR_0)
    ours, theirs = model_of(tmp_path / "next"), model_of(run)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert json.loads((tmp_path / "next" / "init.json").read_text())["random"] == []


def test_weights_of_images_that_were_normalized_otherwise_are_named_once(photos, weights, run, tmp_path, caplog):
    (tmp_path / "timm").mkdir()
    shutil.copy(weights, tmp_path / "timm" / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"pretrained_cfg": said}))
    start = ("--steps", "1", "--init", str(tmp_path / "timm"))
    train(RECIPE, photos, tmp_path / "one", *start)
    train(RECIPE, photos, tmp_path / "one", *start)  # which is finished
    (record,) = (record for record in caplog.records if "was trained on images" in record.message)
    assert record.message == (
        f"--init {tmp_path / 'timm'} was trained on images normalized by mean (0.5, 0.5, 0.5) and std (0.5, 0.25, 0.5);"
        f" this run normalizes by mean {IMAGENET_MEAN} and std {IMAGENET_STD}; --mean and --std set others"
    )
    caplog.clear()
    same = ("--mean", "0.5", "0.5", "0.50001", "--std", "0.5", "0.25", "0.5")
    train(RECIPE, photos, tmp_path / "two", *start, *same)
    train(RECIPE, photos, tmp_path / "three", "--steps", "1", "--init", str(run))
    assert "was trained on images" not in caplog.text
    train(RECIPE, photos, tmp_path / "four", "--steps", "1", "--init", str(run), *same)
    assert f"--init {run} was trained on images normalized by mean (0.485" in caplog.text


def test_a_dry_run_tells_what_would_be_taken(photos, weights, tmp_path, capsys):
    main([RECIPE, "--data", str(photos), "--out", str(tmp_path / "run"), "--init", str(weights), "--dry-run"])
    assert f"initialized from {weights} (timm names); taken: encoder 52, heads 2" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
