"""Gray, RGBA and 5-channel runs: they are planned, train, resume, draw and export like any other."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from growing import repeatable
from interop import import_or_skip
from PIL import Image
from spectral import smooth_levels, with_channels, write_spectral

from bimkern import export, plan, pretrain
from bimkern.data.loader import LoaderError
from bimkern.mim.model import MIM
from bimkern.models.encoder import WholeImages
from bimkern.models.exported import load_encoder
from bimkern.recipes import RECIPES, Recipe
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.config.run import ConfigError
from bimkern.train.run import find_inputs, run

BASES = {1: "mae_vit_test", 4: "fastmim_vit_test", 5: "bim_vit_test"}  # pixels, HOG and painted masks, stages
every_number = pytest.mark.parametrize("channels", BASES)


def config_of(channels, **options):
    config = with_channels(RECIPES[BASES[channels]].config, channels)
    options = {"workers": 0, "log_every": 1, "save_every": 1, "steps": 2, "batch_size": 4, "device": "cpu"} | options
    return replace(config, recipe="spectral", run=replace(config.run, **options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the outcome of a run by its channels, on twelve images."""
    outcomes = {}

    def outcome(channels):
        if channels not in outcomes:
            folder = tmp_path_factory.mktemp(f"{channels}-channels")
            images = write_spectral(folder / "images", channels)
            outcomes[channels] = run(config_of(channels, data=images, out=folder / "run"))
        return outcomes[channels]

    return outcome


@every_number
def test_it_trains_and_evaluates_on_images_of_its_channels(finished, channels):
    outcome = finished(channels)
    for held_out in outcome.held_out:
        assert 0 < held_out.error < 100 * held_out.baseline_error
    losses = [record["loss"] for record in repeatable(outcome.folder.path)]
    assert len(losses) == 2
    assert all(torch.tensor(losses).isfinite())
    assert not (outcome.folder.path / "quarantine.jsonl").exists()


@every_number
def test_it_resumes_bit_for_bit(finished, channels, tmp_path):
    config, path = finished(channels).config, finished(channels).folder.path
    shutil.copytree(path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000002")
    run(replace(config, run=replace(config.run, out=tmp_path / "run")))
    assert repeatable(tmp_path / "run") == repeatable(path)
    model = "checkpoints/step-00000002/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (path / model).read_bytes()


@every_number
def test_images_that_it_holds_out_have_its_channels(finished, channels, tmp_path):
    data = finished(channels).config.run.data
    outcome = run(config_of(channels, data=data, out=tmp_path / "run", steps=1, held_out=0.5))
    (record,) = outcome.history
    assert record["held_out_loss_per_stage"] == pytest.approx([stage.loss for stage in outcome.held_out])


@every_number
def test_its_picture_is_gray_or_in_color(finished, channels):
    with Image.open(finished(channels).folder.pictures / "reconstruction.png") as picture:
        colors = picture.getcolors(2**24)
    is_gray = all(red == green == blue for _, (red, green, blue) in colors)
    assert is_gray == (channels == 1)
    assert len(colors) > 50


@every_number
def test_its_export_computes_the_same_features(finished, channels, tmp_path):
    outcome = finished(channels)
    method = outcome.config.method
    model = MIM(method)
    model.load_state_dict(checkpoints.load_latest(outcome.folder.checkpoints).model)
    levels = [smooth_levels(*2 * [method.encoder.image_size.height], channels, seed) for seed in range(2)]
    images = torch.from_numpy(np.stack(levels)).permute(0, 3, 1, 2)

    def features(encoder):
        tokens = encoder.embed(images, model.mean, model.std)
        for layer in range(method.encoder.depth):
            tokens = encoder.run_layer(layer, tokens, WholeImages(method.encoder.grid))
        return tokens

    with torch.no_grad():
        ours = features(model.encoder)
        export.main([str(outcome.folder.path), "--out", str(tmp_path / "timm")])
        assert torch.equal(features(load_encoder(tmp_path / "timm")), ours)
        timm = import_or_skip("timm")
        theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        assert theirs.pretrained_cfg["input_size"] == (channels, *images.shape[2:])
        assert tuple(theirs.pretrained_cfg["mean"]) == method.mean
        normed = model.heads[-1].in_norm(ours)
        torch.testing.assert_close(theirs.forward_features(model.colors.normalize(images)), normed)


@every_number
def test_its_memory_is_planned(channels, monkeypatch, capsys):
    config = config_of(channels)
    monkeypatch.setitem(RECIPES, "spectral", Recipe(summary="for a test", config=config))
    plan.main(["spectral", "--batch-size", "8", "--json"])
    need = json.loads(capsys.readouterr().out)
    assert need["inputs"] == 8 * (channels * config.method.encoder.image_size.height**2 + 8)


@every_number
def test_a_dry_run_shows_its_channels(finished, channels, monkeypatch, capsys):
    config = config_of(channels)
    monkeypatch.setitem(RECIPES, "spectral", Recipe(summary="for a test", config=config))
    pretrain.main(["spectral", "--data", str(finished(channels).config.run.data), "--dry-run"])
    assert f'"channels": {channels},' in capsys.readouterr().out


def test_the_demo_photographs_are_gray_or_rgb():
    assert find_inputs(config_of(1)).listing.channels == 1
    message = "the demo photographs have 3 channels and the encoder takes 5; give --data"
    with pytest.raises(ConfigError, match=message):
        find_inputs(config_of(5))


def test_the_loader_is_refused_before_the_images_are_checked(finished):
    data = finished(5).config.run.data
    with pytest.raises(LoaderError, match="--loader dali: DALI decodes to 1 or 3 channels and the encoder takes 5"):
        run(config_of(5, data=data, loader="dali"))
