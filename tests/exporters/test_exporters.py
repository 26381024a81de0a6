"""What a run leaves for other programs, and what is read back from a run folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from disk import full_disk, mode, umask_of
from safetensors import safe_open

from bimkern.exporters.detectron2 import write_detectron2
from bimkern.exporters.hf import write_hf
from bimkern.exporters.mae_program import write_mae_program
from bimkern.exporters.mmpretrain import write_mmpretrain
from bimkern.exporters.own import write_backbones, write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained, read_trained
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.checkpoint.store import Checkpoint, CheckpointError
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import to_json
from bimkern.train.run_folder.folder import RunFolder

CONFIG = RECIPES["bim_vit_test"].config
every_format = pytest.mark.parametrize(
    "write", [write_timm, write_mae_program, write_hf, write_detectron2, write_mmpretrain, write_own]
)


def trained(step=20):
    return Trained(CONFIG, step, MIM(CONFIG.method).state_dict())


def run_folder(path, *steps):
    """A run folder with a checkpoint after each of the steps."""
    folder = RunFolder(path)
    folder.open(CONFIG)
    folder.record(CONFIG)
    for step in steps:
        weights = dict(trained().weights)
        saved = Checkpoint(step, weights, {}, {"config": to_json(CONFIG)})
        checkpoints.save(folder.checkpoints, saved, best_step=0)
    return folder


def test_a_backbone_for_every_depth_says_what_it_is(tmp_path):
    write_backbones(tmp_path, trained())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"backbone-depth0{k}" for k in (1, 2, 3, 4)]
    with safe_open(tmp_path / "backbone-depth03" / "model.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "recipe": "bim_vit_test",
            "step": "20",
            "encoder": '{"type": "ViTConfig", "width": 32, "depth": 3, "num_heads": 2, "patch": 8, "image_size": 32, '
            '"channels": 3, "mlp_ratio": 4.0}',
            "interpolation": "bicubic",
            "mean": "[0.485, 0.456, 0.406]",
            "std": "[0.229, 0.224, 0.225]",
            "global_pool": "avg",
        }
        assert "blocks.2.attn.qkv.weight" in file.keys()  # noqa: SIM118  # not a mapping
        assert "blocks.3.attn.qkv.weight" not in file.keys()  # noqa: SIM118


def test_the_mae_program_reads_weights_without_running_a_pickle(tmp_path):
    write_mae_program(tmp_path / "mae.pth", trained(), 4)
    loaded = torch.load(tmp_path / "mae.pth", weights_only=True)
    assert json.loads(loaded["metadata"]["encoder"])["num_heads"] == 2
    assert torch.equal(loaded["model"]["decoder_pred.bias"], torch.zeros(192))


def test_a_run_is_read_at_its_newest_intact_checkpoint(tmp_path, caplog):
    folder = run_folder(tmp_path / "run", 10, 20)
    run, newest = read_trained(folder.path)
    assert (run.path, newest.step, newest.config) == (folder.path, 20, CONFIG)
    (folder.checkpoints / "step-00000020" / "state.json").write_text("{}")
    assert read_trained(folder.path)[1].step == 10
    assert "step-00000010 instead" in caplog.text


def test_a_single_checkpoint_is_read_with_the_config_of_its_run(tmp_path, monkeypatch):
    folder = run_folder(tmp_path / "run", 10, 20)
    assert read_trained(folder.checkpoints / "step-00000010")[1].step == 10
    monkeypatch.chdir(folder.checkpoints / "step-00000010")
    run, here = read_trained(Path())
    assert (run.path, here.step) == (folder.path, 10)


def test_a_checkpoint_of_another_run_is_not_read_with_this_ones_config(tmp_path):
    folder = run_folder(tmp_path / "run", 10)
    other = RECIPES["mae_vit_test"].config
    saved = Checkpoint(20, MIM(other.method).state_dict(), {}, {"config": to_json(other)})
    checkpoints.save(folder.checkpoints, saved, best_step=0)
    with pytest.raises(ConfigError, match=r"step 20 is of a run with other settings .*recipe: mae_vit_test before"):
        read_trained(folder.path)


def test_reading_leaves_the_save_of_a_live_run_alone(tmp_path):
    folder = run_folder(tmp_path / "run", 10)
    saving = folder.checkpoints / ".writing-step-00000020"
    saving.mkdir()
    assert read_trained(folder.path)[1].step == 10
    assert saving.is_dir()


def test_what_is_no_run_is_refused(tmp_path):
    folder = run_folder(tmp_path / "run")
    with pytest.raises(ConfigError, match="nowhere is not a folder; give a run folder or one of its checkpoints"):
        read_trained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"pictures is neither a run folder, with a config\.json, nor a checkpoint"):
        read_trained(folder.pictures)
    with pytest.raises(CheckpointError, match="run has no checkpoint yet"):
        read_trained(folder.path)
    saved = json.loads((folder.path / "config.json").read_text())
    saved["method"]["flow"]["type"] = "Sideways"
    (folder.path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"config\.json cannot be understood \(.*unknown type 'Sideways'"):
        read_trained(folder.path)


@pytest.mark.parametrize("write", [write_mae_program, write_hf])
@pytest.mark.parametrize(
    ("recipe", "depth", "found"),
    [
        ("simmim_vit_test", 4, "masker TokenReplace"),
        ("fastmim_vit_test", 4, "masker BlockPixels"),
        ("localmim_vit_test_pixels", 2, "a decoder with match_scale=4.0 and positions=True"),
        ("bim_hog_vit_test", 3, "target HogTarget"),
        ("mae_vit_test", 4, "a decoder with match_scale=None and positions=False"),
    ],
)
def test_the_layouts_of_mae_refuse_what_is_not_maes(tmp_path, write, recipe, depth, found):
    config = RECIPES[recipe].config
    if recipe == "mae_vit_test":
        head = replace(config.method.head(0), positions=False)
        config = replace(config, method=replace(config.method, heads=(head,)))
    message = (
        r"formats mae and hf hold MAE's pieces alone \(RandomDrop, a decoder with positions, pixels of every patch\); "
        f"{recipe} has {found} after layer {depth}; --format timm takes its encoder"
    )
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "out", Trained(config, 20, MIM(config.method).state_dict()), depth)
    assert not list(tmp_path.iterdir())


@every_format
def test_a_place_that_cannot_be_written_is_named(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/out.* cannot be written"):
        write(tmp_path / "file" / "out", trained(), 4)


@every_format
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_files_have_the_mode_of_any_new_file(tmp_path, write, umask):
    with umask_of(umask):
        write(tmp_path / "out", trained(), 4)
    for path in tmp_path.rglob("*"):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask


@every_format
def test_a_full_disk_leaves_no_half_file(tmp_path, write):
    with pytest.raises(ConfigError, match="cannot be written"), full_disk(10_000):
        write(tmp_path / "out", trained(), 4)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
