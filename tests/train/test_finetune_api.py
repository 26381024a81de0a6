"""finetune() from Python: its arguments, own recipes, what it returns, and that it trains as the command does."""

import signal
from dataclasses import replace

import pytest
import torch
from labeled_stripes import write_stripes
from safetensors.torch import load_file
from saved_runs import make_run

from bimkern.api import Finetuned, finetune
from bimkern.finetune import main
from bimkern.recipes import RECIPES, Recipe
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.signals import Stopped

pytestmark = pytest.mark.usefixtures("pictures_on_request")

MINE = """
from dataclasses import replace
from bimkern.recipes.finetuning import FINETUNE_RECIPES

def mine():
    return replace(FINETUNE_RECIPES["demo"].config, recipe="mine", layer_decay=0.5)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with labeled images, data, and an untrained run, run."""
    folder = tmp_path_factory.mktemp("finetune_api")
    write_stripes(folder / "data")
    make_run(folder / "run", "mae_vit_test")
    return folder


@pytest.fixture
def options(folder, tmp_path):
    given = {"backbone": folder / "run", "data": folder / "data", "out": tmp_path / "out"}
    return given | {"steps": 3, "batch_size": 8, "save_every": 2, "workers": 0, "log_every": 1}


@pytest.fixture(scope="module")
def uninterrupted(folder):
    out = folder / "uninterrupted"
    changes = {"layer_decay": 0.7}
    shape = {"steps": 3, "batch_size": 8, "save_every": 2, "workers": 0, "log_every": 1}
    return finetune("demo", set=changes, backbone=folder / "run", data=folder / "data", out=out, **shape)


def exported(outcome):
    return load_file(outcome.folder.exported / "model.safetensors")


def assert_same(outcome, expected):
    """Bit for bit."""
    weights = exported(expected)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported(outcome).items())
    assert outcome.held_out.record() == expected.held_out.record()


def test_it_returns_classifier_records_and_paths(uninterrupted):
    assert isinstance(uninterrupted, Finetuned)
    assert (uninterrupted.config.layer_decay, uninterrupted.config.run.steps) == (0.7, 3)
    assert [record["step"] for record in uninterrupted.history] == [1, 2, 3]
    assert not uninterrupted.model.training
    assert (uninterrupted.folder.pictures / "confusion.png").is_file()


def test_the_command_trains_the_same(folder, tmp_path, uninterrupted):
    data = ["--backbone", str(folder / "run"), "--data", str(folder / "data"), "--out", str(tmp_path / "out")]
    shape = ["--steps", "3", "--batch-size", "8", "--save-every", "2", "--workers", "0", "--log-every", "1"]
    main(["demo", "--layer-decay", "0.7", *data, *shape])
    weights = load_file(tmp_path / "out" / "exported" / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported(uninterrupted).items())


def test_callbacks_see_it_and_an_interrupted_run_resumes(options, uninterrupted):
    def interrupt(step):
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped) as stopped:
        finetune("demo", set={"layer_decay": 0.7}, on_step=interrupt, **options)
    assert stopped.value.__notes__ == ["The same call resumes the run."]
    steps, saves, ends = [], [], []
    watched = {"on_step": steps.append, "on_save": saves.append, "on_end": ends.append}
    outcome = finetune("demo", set={"layer_decay": 0.7}, **watched, **options)
    assert [step.step for step in steps] == [3]
    assert [saved.step for saved in saves] == [3]
    assert ends == [outcome]
    assert_same(outcome, uninterrupted)


def test_own_recipes_in_a_file_and_as_objects(options, tmp_path):
    (tmp_path / "file_of_finetuning.py").write_text(MINE)
    config = replace(FINETUNE_RECIPES["demo"].config, recipe="mine", layer_decay=0.5)
    expected = finetune(config, **options)
    assert (expected.config.recipe, expected.config.layer_decay) == ("mine", 0.5)
    for number, mine in enumerate([f"{tmp_path}/file_of_finetuning.py:mine", Recipe(summary="mine", config=config)]):
        assert_same(finetune(mine, **options | {"out": tmp_path / f"{number}"}), expected)


def test_the_command_takes_an_own_recipe(capsys, tmp_path):
    (tmp_path / "shown_of_finetuning.py").write_text(MINE)
    main([f"{tmp_path}/shown_of_finetuning.py:mine", "--drop-path", "0.1", "--show"])
    shown = capsys.readouterr().out
    assert all(line in shown for line in ('recipe = "mine"', "layer_decay = 0.5", "drop_path = 0.1"))


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        ("dem", {}, "unknown recipe 'dem' (your own is named as my_file.py:my_recipe or my_package"),
        (RECIPES["demo"], {}, "recipe must be the name of one, a Recipe or a FinetuneConfig, got Config"),
        (None, {}, "recipe must be the name of one, a Recipe or a FinetuneConfig, got NoneType"),
        ("bimkern.recipes.demo:demo", {}, "must be a FinetuneConfig or Recipe, or a function that returns one; got "),
        ("demo", {"backbon": "x"}, 'finetune has no option \'backbon\' (fields of the config are given by set={"lay'),
        ("demo", {"set": {"run.steps": 1}, "steps": 2}, "steps is given twice, as an option and as run.steps in set"),
        ("demo", {"set": ["ema"]}, "set must hold values by paths, as in {\"layer_decay\": 0.7}, got ['ema']"),
        ("demo", {}, "--backbone is missing; name a pre-training run, or weights to begin with"),
        ("demo", {"batch_size": 4, "micro_batch": 8}, "--micro-batch must be at most the images of a step, "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(recipe, given, message):
    with pytest.raises(ConfigError) as refused:
        finetune(recipe, **given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
