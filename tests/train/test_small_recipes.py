"""Every method runs to its end, is resumed bit for bit, and leaves encoders that timm takes."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from growing import NOT_REPEATABLE
from interop import import_or_skip
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from undrawn import undrawn

from bimkern.models.encoder import WholeImages
from bimkern.models.swin import SwinConfig
from bimkern.models.vit import ViTConfig
from bimkern.pretrain import main
from bimkern.recipes import SMALL_RECIPES
from bimkern.train import network
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.config.serialize import from_json

pytestmark = pytest.mark.usefixtures("without_estimates")  # test_estimate.py has those of every recipe

RECIPES = {recipe.name: recipe.config for recipe in SMALL_RECIPES}
STEPS = 4
TEACHER = "fastmim_vit_test"


def recipes(names):
    """Run a test on some recipes. All tests of one follow each other, so that one worker has its finished run."""
    return pytest.mark.parametrize("recipe", names, scope="module")


every_recipe = recipes(RECIPES)
# Other tests have the rest: tests/exporters the networks of timm itself, tests/recipes CMT, which timm lacks.
every_recipe_of_an_own_encoder = recipes(
    [name for name, c in RECIPES.items() if isinstance(c.method.encoder, (ViTConfig, SwinConfig))]
)
# Of stages of two layers each; the others freeze at other steps.
freezing = recipes(["vitfreeze_vit_test", "vitfreeze_vit_test_isolated"])


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train a recipe in a folder on six photographs; return what is printed. Its teacher, if any, is trained first."""
    photos = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(6):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((72, 72), Image.Resampling.BICUBIC).save(photos / f"{i}.jpg")

    teachers = []

    def teacher():
        if not teachers:
            out = tmp_path_factory.mktemp("teacher") / "run"
            run(TEACHER, out)
            teachers.append(out / "exported" / f"backbone-depth{RECIPES[TEACHER].method.encoder.depth:02}")
        return teachers[0]

    def run(recipe, out, steps=STEPS):
        options = ("--steps", steps, "--batch-size", 4, "--save-every", 2, "--log-every", 1, "--workers", 0)
        if RECIPES[recipe].method.distillation is not None:
            options += ("--teacher", teacher())
        arguments = [recipe, "--data", photos, "--out", out, "--device", "cpu", *options]
        with redirect_stdout(StringIO()) as printed:
            main([str(argument) for argument in arguments])
        return printed.getvalue()

    return run


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """Return the folder of a recipe's finished run and what it printed; every run is made once."""
    runs = {}

    def folder(recipe):
        if recipe not in runs:
            out = tmp_path_factory.mktemp(recipe) / "run"
            runs[recipe] = out, train(recipe, out)
        return runs[recipe]

    return folder


def records(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in NOT_REPEATABLE} for line in lines]


@every_recipe
def test_it_runs_to_its_end(finished, recipe):
    out, printed = finished(recipe)
    config, logged = RECIPES[recipe], records(out)
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    for record in logged:
        assert len(record["loss_per_stage"]) == len(config.method.taps)
        learning = [loss for loss in record["loss_per_stage"] if loss is not None]
        assert record["loss"] == pytest.approx(sum(learning))
        assert config.schedule.per_group or len(learning) == len(config.method.taps)
    for tap in config.method.taps:
        assert f"\n  after layer {tap + 1}  " in printed
    for name in ("reconstruction", "curves", "memory"):
        with Image.open(out / "pictures" / f"{name}.png") as picture:
            assert picture.width > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 10


@freezing
def test_a_frozen_stage_has_no_loss_anywhere(finished, recipe):
    out, printed = finished(recipe)
    assert "(What was frozen before the end is evaluated as it was left.)" in printed
    assert "loss frozen" in printed
    assert [record["loss_per_stage"][0] is None for record in records(out)] == [False, False, False, True]
    (file,) = (out / "tensorboard").iterdir()
    tags = [(event.step, value.tag) for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    assert (3, "loss_per_stage/1") in tags
    assert (4, "loss_per_stage/1") not in tags
    assert (4, "loss_per_stage/4") in tags


@freezing
def test_the_best_checkpoint_is_sought_again_when_stages_freeze(finished, recipe):
    """The loss, a sum, falls by their share. Step 3 is not averaged with the last, which has three stages less."""
    out, _ = finished(recipe)
    before, after = (checkpoints.load(path).state["best"] for path in sorted((out / "checkpoints").glob("step-*")))
    loss = [record["loss"] for record in records(out)]
    assert before == {"step": 2, "loss": pytest.approx((loss[0] + loss[1]) / 2), "frozen_stages": 0, "image_size": 64}
    assert after == {"step": 4, "loss": pytest.approx(loss[3]), "frozen_stages": 3, "image_size": 64}


@every_recipe_of_an_own_encoder
def test_timm_takes_the_encoder_of_every_tap(finished, recipe):
    timm = import_or_skip("timm")
    out, _ = finished(recipe)
    config = from_json(json.loads((out / "config.json").read_text()))
    method = config.method
    encoder = method.encoder
    model = network.build(config)
    model.load_state_dict(checkpoints.load_latest(out / "checkpoints").model)
    images = torch.randint(0, 256, (2, 3, encoder.image_size.height, encoder.image_size.height), dtype=torch.uint8)
    pixels = model.colors.normalize(images)
    tokens = model.encoder.embed(pixels)
    view = WholeImages(encoder.level(0).grid(*images.shape[2:]))
    names = []
    for stage, tap in enumerate(method.taps):
        for layer in model.stage_layers(stage):
            tokens = model.encoder.run_layer(layer, tokens, view)
        names.append(f"backbone-depth{tap + 1:02d}")
        theirs = timm.create_model(f"local-dir:{out / 'exported' / names[-1]}", pretrained=True).eval()
        features = model.heads[stage].in_norm(tokens)
        found = theirs.forward_features(pixels)  # of a Swin in rows and columns
        torch.testing.assert_close(found.flatten(1, -2), features, rtol=1e-3, atol=1e-4)
        assert timm.data.resolve_model_data_config(theirs)["interpolation"] == config.augment.interpolation
    assert sorted(path.name for path in (out / "exported").iterdir()) == names


@recipes(
    [
        *("bim_simmim_vit_test", "maskfeat_vit_test", "localmim_vit_test_pixels"),
        *("vitfreeze_vit_test", "vitfreeze_vit_test_isolated", "vitfreeze_swin_tiny_test"),
        *("greenmim_swin_tiny_test", "bim_swin_tiny_test", "fastmim_p_swin_tiny_test"),
    ],
)
def test_it_resumes_from_a_checkpoint_bit_for_bit(train, finished, tmp_path, recipe):
    whole, _ = finished(recipe)
    shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"step-{STEPS:08d}")
    with undrawn():
        assert f"at step 2 of {STEPS}" in train(recipe, tmp_path / "resumed")
    assert records(tmp_path / "resumed") == records(whole)
    ours, theirs = (checkpoints.load_latest(run / "checkpoints").model for run in (whole, tmp_path / "resumed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@freezing
def test_it_resumes_from_a_checkpoint_behind_a_freeze(train, tmp_path, recipe):
    """The 6th of 8 steps is the first without the first stage; in the 7th the embedding and five layers stand still."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with undrawn():
        train(recipe, whole, steps=8)
    assert [record["loss_per_stage"].count(None) for record in records(whole)] == [0, 0, 0, 0, 0, 1, 2, 3]
    frozen = checkpoints.load(whole / "checkpoints" / "step-00000006")
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-00000008")
    with undrawn():
        assert "at step 6 of 8" in train(recipe, resumed, steps=8)
    assert records(resumed) == records(whole)
    ours, theirs = (checkpoints.load_latest(run / "checkpoints") for run in (whole, resumed))
    for before, after in ((ours.model, theirs.model), (ours.optimizer, theirs.optimizer)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    groups = network.build(RECIPES[recipe]).layer_groups()
    stopped = {name for name in groups if torch.equal(frozen.model[name], theirs.model[name])}
    assert stopped == {name for name, group in groups.items() if group.number <= 5}
