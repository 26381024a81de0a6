"""Runs on images with alpha, or of more than 8 bits: how these are decoded belongs to the run and to its weights."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from labeled_stripes import write_stripes
from PIL import Image
from spectral import smooth_levels, with_channels

from bimkern import attention, probe
from bimkern.api import finetune, pretrain
from bimkern.data.augment import CenterCrop
from bimkern.data.decoding import Decoding
from bimkern.data.levels import to_levels
from bimkern.data.training_augment import TrainingAugment
from bimkern.evaluate.backbone import common_decoding, read_backbone
from bimkern.evaluate.errors import EvaluationError
from bimkern.export import main as export
from bimkern.files import jsonl
from bimkern.recipes import RECIPES
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import from_json, to_json

tifffile = pytest.importorskip("tifffile")

RANGE = (0.0, 4095.0)
QUICK = {"steps": 1, "batch_size": 4, "workers": 0, "log_every": 1, "arena": "off", "device": "cpu"}
RECIPE = with_channels(RECIPES["bim_vit_test"].config, 5)


def losses(out):
    return [record["loss_per_stage"] for record in jsonl.read(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 5 bands and 12 bits, deep, and the same of 8 bits, mapped: TIFFs in two class folders each."""
    folder = tmp_path_factory.mktemp("decoded")
    for i in range(12):
        values = 16 * smooth_levels(seed=i).astype(np.uint16) + i
        for name in ("deep", "mapped"):
            (folder / name / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            pixels = values if name == "deep" else to_levels(values, RANGE)
            path = folder / name / "ab"[i % 2] / f"{i:02}.tif"
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The folder of a run on the deep images, normalized by their own mean."""
    pretrain(RECIPE, data=folder / "deep", out=folder / "run", range=RANGE, normalize="dataset", **QUICK)
    return folder / "run"


def test_a_run_is_that_of_the_images_mapped_beforehand(run, folder):
    pretrain(RECIPE, data=folder / "mapped", out=folder / "run of mapped", normalize="dataset", **QUICK)
    assert losses(run) == losses(folder / "run of mapped") != []
    ours, theirs = (json.loads((folder / name / "normalization.json").read_text()) for name in ("run", "run of mapped"))
    assert ours == theirs
    assert not (run / "quarantine.jsonl").exists()


def test_it_resumes_only_with_the_same_range(run, folder):
    options = QUICK | {"data": folder / "deep", "out": run, "normalize": "dataset", "steps": 2, "extend": True}
    with pytest.raises(ConfigError, match=r"other settings \(run.range: \[0.0, 4095.0\] before, \[0.0, 9.0\] now\)"):
        pretrain(RECIPE, range=(0, 9), **options)
    with pytest.raises(ConfigError, match=r"run.range: \[0.0, 4095.0\] before, None now"):
        pretrain(RECIPE, **options)


def test_without_a_range_the_images_are_named_with_the_remedy(folder, tmp_path, caplog):
    with pytest.raises(ValueError, match="12 of 12 images cannot be read"):
        pretrain(RECIPE, data=folder / "deep", out=tmp_path / "run", **QUICK)
    assert "16 bits per channel (uint16); state their range, as in --range 0 4095" in caplog.text


def test_what_reads_its_weights_decodes_alike(run, folder, tmp_path, capsys):
    decoding = Decoding(channels=5, range=RANGE)
    assert common_decoding({"run": read_backbone(run)}) == decoding
    export([str(run), "--out", str(tmp_path / "exported"), "--format", "bimkern"])
    exported = next(path.parent for path in (tmp_path / "exported").rglob("*.safetensors"))
    backbones = {"run": read_backbone(run), "exported": read_backbone(exported)}
    assert backbones["exported"].images == backbones["run"].images
    assert common_decoding(backbones) == decoding
    assert common_decoding(backbones, stated="dtype") == Decoding(channels=5, range="dtype")
    other = replace(backbones["run"], images=replace(backbones["run"].images, range=None))
    with pytest.raises(EvaluationError, match=r"5 channels, range \(0.0, 4095.0\) of run, 5 channels of other"):
        common_decoding({"run": backbones["run"], "other": other})
    with pytest.raises(EvaluationError, match="--alpha white is for gray and RGB"):
        common_decoding(backbones, alpha="white")
    capsys.readouterr()
    tables = []
    for data in ("deep", "mapped"):
        probe.main([str(run), "--data", str(folder / data), "--epochs", "2", "--k", "1", "--depth", "4", "--json"])
        found = json.loads(capsys.readouterr().out)
        tables.append({name: value for name, value in found.items() if "latency" not in name})
        attention.main([str(run), "--data", str(folder / data), "--images", "8", "--json"])
        tables[-1] |= {"attention": capsys.readouterr().out}
    assert tables[0] == tables[1]


def test_fine_tuning_takes_it_from_the_backbone(run, folder, tmp_path):
    plain = TrainingAugment(rand_augment=None, erase_prob=0.0)
    base = FINETUNE_RECIPES["demo"].config
    recipe = replace(base, encoder=None, augment=plain, mixing=None, crop=CenterCrop(ratio=1.0))
    options = QUICK | {"backbone": run, "held_out": 0.3}
    outcome = finetune(recipe, data=folder / "deep", out=tmp_path / "deep", **options)
    assert outcome.config.decoding == Decoding(channels=5, range=RANGE)
    assert read_backbone(outcome.folder.exported).images.range == RANGE


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Labeled images, every second of them half transparent."""
    folder = write_stripes(tmp_path_factory.mktemp("stripes"), train=4, val=2)
    for path in sorted(folder.rglob("*.png"))[::2]:
        with Image.open(path) as image:
            image = image.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path)
    return folder


def test_alpha_changes_what_a_run_sees(stripes, tmp_path):
    options = QUICK | {"data": stripes / "train"}
    pretrain("mae_vit_test", out=tmp_path / "drop", **options)
    pretrain("mae_vit_test", out=tmp_path / "white", alpha="white", **options)
    assert losses(tmp_path / "white") != losses(tmp_path / "drop")
    backbone = read_backbone(tmp_path / "white")
    assert common_decoding({"white": backbone}) == Decoding(alpha="white")
    assert common_decoding({"white": backbone}, alpha="drop") == Decoding()
    with pytest.raises(ConfigError, match=r"run.alpha: white before, drop now"):
        pretrain("mae_vit_test", out=tmp_path / "white", **options)


def test_of_other_channels_alpha_is_refused_in_a_line(folder, tmp_path):
    with pytest.raises(
        ConfigError, match="--alpha white is for gray and RGB: the encoder takes 5 channels as they are"
    ):
        pretrain(RECIPE, data=folder / "mapped", out=tmp_path / "run", alpha="white", **QUICK)


@pytest.mark.parametrize("stated", [None, "dtype", (-1.0, 1.0)])
def test_a_config_with_it_is_saved_and_read_back(stated):
    config = replace(RECIPE, run=replace(RECIPE.run, range=stated))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_run_with_its_images_in_memory_is_the_same(stripes, tmp_path, capsys):
    options = QUICK | {"data": stripes / "train", "held_out": 0.3, "steps": 2}
    pretrain("mae_vit_test", out=tmp_path / "read", **options)
    pretrain("mae_vit_test", out=tmp_path / "kept", cache="memory", **options)
    assert losses(tmp_path / "kept") == losses(tmp_path / "read") != []
    assert re.search(r"PIL in 0 processes, .*; 38 KiB decoded in memory", capsys.readouterr().out)  # with the held-out


@pytest.mark.parametrize(("ranks", "available", "each"), [(1, 40_000, ""), (2, 90_000, " in each of 2 ranks")])
def test_images_that_do_not_fit_are_refused_with_what_they_take(stripes, tmp_path, monkeypatch, ranks, available, each):
    monkeypatch.setattr("bimkern.train.training.available_memory", lambda device: available)
    monkeypatch.setattr("bimkern.train.training.local_world_size", lambda: ranks)
    message = (
        rf"--cache memory: 8 images take 38 KiB decoded{each}, and 80% of the {available / 1024:.0f} KiB that are "
        r"available may be used; leave it out, or shrink the images with python -m bimkern.pack"
    )
    with pytest.raises(ConfigError, match=message):
        pretrain("mae_vit_test", data=stripes / "train", out=tmp_path / "run", cache="memory", **QUICK)
