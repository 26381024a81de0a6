"""Pieces of a user's own file are trained, saved, resumed, planned, drawn and exported like ours."""

import json
import os
import shutil
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import commands
import pytest
import torch
from growing import repeatable, write_photos
from interop import import_or_skip
from own_pieces import Archive, Checkerboard, Linear, MeanColor, own_recipe
from PIL import Image

from bimkern import export, pieces, plan, pretrain
from bimkern.mim.flow import MicroBatch
from bimkern.mim.masking.masker import Masker
from bimkern.mim.reconstruction.renderers import Renderer, renderer_class
from bimkern.mim.schedule import Cosine, Schedule
from bimkern.mim.targets import HogTarget, PixelTarget, Target
from bimkern.recipes import RECIPES, Recipe
from bimkern.train import network
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import differences, from_json, to_json
from bimkern.train.optim.group import GroupOptimizer

NAME = "own_test"
CONFIG = own_recipe(NAME)


OPTIONS = ("--workers", "0", "--log-every", "1", "--steps", "12", "--save-every", "4", "--batch-size", "6")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos")
    with zipfile.ZipFile(folder.parent / "photos.zip", "w") as members:
        for photo in folder.iterdir():
            members.write(photo, photo.name)
    return folder.parent / "photos.zip"


def run(archive, out, *options):
    config = own_recipe(NAME, Archive(archive=archive))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, NAME, Recipe(summary="for a test", config=config))
        pretrain.main([NAME, "--out", str(out), *OPTIONS, *options])


@pytest.fixture(scope="module")
def finished(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    run(archive, out)
    return out


def test_it_learns(device):
    """One batch, with the same masks, by heart."""
    torch.manual_seed(0)
    model = network.build(CONFIG).to(device)
    ((name, group),) = CONFIG.method.flow.partition(model).items()
    update = GroupOptimizer(name, group, CONFIG.optim, device=device, fp16=False)
    update.set_rates(lambda group: 3e-3)
    images = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, device=device)
    images = images.repeat_interleave(16, 2).repeat_interleave(16, 3)
    batch = MicroBatch(images, model.views(images, torch.arange(4, device=device), seed=0))
    losses = [CONFIG.method.flow.step(model, [batch], [update]).item() for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]


def test_its_own_schedule_freezes(finished):
    before, after = (checkpoints.load(finished / "checkpoints" / f"step-{n:08}").model for n in (8, 12))
    groups = network.build(CONFIG).layer_groups()
    still = {name for name in groups if torch.equal(before[name], after[name])}
    assert still == {name for name, group in groups.items() if group.number == 0}


def test_its_config_is_read_back(archive, finished):
    saved = json.loads((finished / "config.json").read_text())
    assert saved["method"]["masker"] == {"type": "Checkerboard", "from": "own_pieces"}
    assert saved["method"]["encoder"].get("from") is None
    read = from_json(saved)
    assert (read.method, read.schedule) == (CONFIG.method, CONFIG.schedule)
    assert read.source == Archive(archive=archive)


def test_its_source_trains_as_a_folder_of_the_same_images_does(archive, finished, tmp_path):
    run(archive, tmp_path / "run", "--data", str(archive.with_suffix("")))
    assert repeatable(tmp_path / "run") == repeatable(finished)
    assert (tmp_path / "run" / "images.jsonl").read_bytes() == (finished / "images.jsonl").read_bytes()


def test_what_is_damaged_in_its_source_is_quarantined(archive, tmp_path, caplog):
    content = bytearray(archive.read_bytes())
    position = content.index(b"03.jpg") + 200
    content[position] ^= 0xFF  # of a file that is stored as it is: its checksum is wrong
    (tmp_path / "damaged.zip").write_bytes(content)
    run(tmp_path / "damaged.zip", tmp_path / "run")
    (bad,) = map(json.loads, (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines())
    assert bad == {"file": "03.jpg", "reason": "Bad CRC-32 for file '03.jpg'", "step": None}
    assert "1 of 12 images quarantined" in caplog.text


def test_it_resumes_bit_for_bit_with_its_images_elsewhere(archive, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000012")
    shutil.copy(archive, tmp_path / "moved.zip")
    run(tmp_path / "moved.zip", tmp_path / "resumed")
    assert "at step 8 of 12" in capsys.readouterr().out
    assert repeatable(tmp_path / "resumed") == repeatable(finished)


def test_it_is_drawn_by_its_own_renderer(finished):
    with Image.open(finished / "pictures" / "reconstruction.png") as picture:
        # original, masked, target and prediction, each 4 x 4 cells of 20 pixels in a frame of 4
        assert picture.width == 4 * (4 * 20 + 2 * 4)
        assert len(picture.convert("RGB").getcolors(2**24)) > 10


def test_its_memory_is_planned(monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, NAME, Recipe(summary="for a test", config=CONFIG))
    plan.main([NAME, "--batch-size", "8", "--json"])
    need = json.loads(capsys.readouterr().out)
    assert 0 < need["activations"] < need["peak"]


def test_timm_takes_its_encoder(finished, tmp_path):
    timm = import_or_skip("timm")
    export.main([str(finished), "--out", str(tmp_path / "backbone")])
    theirs = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True)
    weights = checkpoints.load_latest(finished / "checkpoints").model
    assert torch.equal(theirs.blocks[3].mlp.fc2.weight, weights["encoder.blocks.3.mlp.fc2.weight"])


def test_where_its_module_is_not_imported_one_line_says_so(finished):
    command = [sys.executable, "-m", "bimkern.export", str(finished)]
    done = commands.run(command, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert (
        "config.json cannot be understood (config.schedule: unknown type 'Linear'; import own_pieces, which "
        "defines it, first (a command: --import own_pieces); or choose one of Cosine, FreezeOut, MultiStep)"
    ) in done.stderr


def test_the_module_it_comes_from_is_no_setting():
    """A file that is run as __main__ the first time and imported the second is the same recipe."""
    saved = to_json(CONFIG)
    saved["method"]["masker"]["from"] = "__main__"
    assert differences(saved, to_json(CONFIG)) == []


def test_its_errors_are_those_of_any_piece():
    with pytest.raises(ValueError, match="Checkerboard: the grid must have an even number of columns, got 3"):
        replace(CONFIG.method, encoder=CONFIG.method.encoder.resized(48))
    saved = to_json(CONFIG)
    saved["schedule"]["slope"] = 2
    with pytest.raises(ConfigError, match=r"config\.schedule\.slope: Linear has no such field; there is none"):
        from_json(saved)


@dataclass(frozen=True)
class Unseen(MeanColor):
    """A target that nothing draws: its base's renderer is for its base and what derives from it."""


@dataclass(frozen=True, kw_only=True)
class Nameless:
    kind: str = "l2"

    def length(self, channels, patch, scale):
        return 1

    def vectors(self, images, patch, scale, colors):
        return images


def test_a_renderer_serves_derived_targets():
    assert renderer_class(Unseen()) is renderer_class(MeanColor())
    assert renderer_class(PixelTarget()) is not renderer_class(HogTarget())


def test_a_target_without_a_renderer_is_refused_before_anything_is_trained():
    config = replace(CONFIG, method=replace(CONFIG.method, targets=(Nameless(),)))
    message = (
        r"own_test: no Renderer is registered for Nameless; register one with "
        r"@pieces\.register\(Renderer, of=Nameless\)"
    )
    with pytest.raises(ConfigError, match=message):
        network.build(config)


def test_what_is_no_such_piece_is_refused_where_it_is_registered():
    with pytest.raises(TypeError, match=r"Halves is no Masker: it has no entering, mask_embedding$"):

        @pieces.register(Masker)
        class Halves:
            def views(self, draw_ids, grid, num_stages, seed): ...

    assert "Halves" not in pieces.registered(Masker)


def test_a_name_stands_for_one_piece():
    with pytest.raises(
        ValueError,
        match=r"Schedule Cosine is registered already, by bimkern\.mim\.schedule\.Cosine; got .*own_pieces",
    ):
        pieces.register(Schedule)(type("Cosine", (Linear,), {"__module__": __name__}))
    assert pieces.registered(Schedule)["Cosine"] is Cosine
    with pytest.raises(ValueError, match="Renderer of PixelTarget is registered already, by bimkern"):
        pieces.register(Renderer, of=PixelTarget)(renderer_class(MeanColor()))


def test_a_module_that_is_loaded_again_replaces_its_pieces():
    again = type("Checkerboard", (Checkerboard,), {"__module__": "own_pieces", "__qualname__": "Checkerboard"})
    try:
        assert pieces.register(Masker)(again) is pieces.registered(Masker)["Checkerboard"]
    finally:
        pieces.register(Masker)(Checkerboard)


def test_kinds_stay_separate():
    assert "MeanColor" in pieces.registered(Target)
    assert "MeanColor" not in pieces.registered(Masker)
    assert pieces.registered(Path) == {}
