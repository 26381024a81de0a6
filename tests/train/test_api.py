"""pretrain() from Python: its arguments, what it returns, its call-backs, and what it leaves of its process."""

import logging
import signal
import sys
import threading
import warnings
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from growing import write_photos
from PIL import Image

from bimkern.api import Outcome, Saved, pretrain
from bimkern.files import jsonl
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.pretraining import Pretraining
from bimkern.train.signals import Stopped

pytestmark = pytest.mark.usefixtures("pictures_on_request")

RECIPE = "bim_vit_test_growing"  # four stages


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("api") / "photos", count=8)


@pytest.fixture
def options(photos, tmp_path):
    return {"data": photos, "out": tmp_path / "run", "steps": 5, "save_every": 2, "log_every": 2, "workers": 0}


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("api") / "run"
    return pretrain(RECIPE, data=photos, out=out, steps=5, save_every=2, log_every=2, workers=0)


def assert_same_training(outcome, expected):
    """Bit for bit."""
    assert outcome.held_out == expected.held_out
    assert [record["loss_per_stage"] for record in outcome.history] == [
        record["loss_per_stage"] for record in expected.history
    ]
    weights = expected.model.state_dict()
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_it_returns_model_records_and_paths(uninterrupted):
    assert [record["step"] for record in uninterrupted.history] == [1, 2, 4, 5]
    assert uninterrupted.history == jsonl.read(uninterrupted.folder.path / "metrics.jsonl")
    assert not uninterrupted.model.training
    assert {parameter.grad for parameter in uninterrupted.model.parameters()} == {None}
    assert (uninterrupted.folder.pictures / "reconstruction.png").is_file()
    assert len(uninterrupted.held_out) == 4
    assert uninterrupted.config.run.steps == 5


def test_callbacks_receive_numbers_and_paths_and_change_nothing(options, uninterrupted):
    steps, saves, ends = [], [], []

    def on_step(step):
        torch.manual_seed(7)  # the numbers of a run are no stream that others draw from
        steps.append(step)

    def on_save(saved):
        saves.append((saved.step, (saved.checkpoint / "manifest.json").is_file(), saved.pictures))

    outcome = pretrain(RECIPE, on_step=on_step, on_save=on_save, on_end=ends.append, **options)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    logged = {record["step"]: record for record in outcome.history}
    for step in steps:
        assert step.num_steps == 5
        if step.step in logged:
            assert list(step.losses) == logged[step.step]["loss_per_stage"]
            assert step.lr == logged[step.step]["lr"]
    assert saves == [(step, True, outcome.folder.pictures) for step in (2, 4, 5)]
    assert ends == [outcome]
    assert_same_training(outcome, uninterrupted)
    for frozen in (steps[0], Saved(step=1, checkpoint=options["out"], pictures=options["out"])):
        with pytest.raises(FrozenInstanceError):
            frozen.step = 2


@pytest.mark.parametrize(
    ("callback", "error"),
    [("on_step", RuntimeError("mine")), ("on_save", KeyboardInterrupt()), ("on_end", RuntimeError("mine"))],
    ids=["on_step", "on_save", "on_end"],
)
def test_what_a_callback_raises_ends_the_run_which_then_resumes(options, uninterrupted, callback, error):
    def fail(event):
        if isinstance(event, Outcome) or event.step >= 3:
            raise error

    with pytest.raises(type(error)) as raised:
        pretrain(RECIPE, **{callback: fail}, **options)
    assert raised.value is error
    assert_same_training(pretrain(RECIPE, **options), uninterrupted)


def test_a_checkpoint_is_reported_though_memory_runs_out_after_it(options, monkeypatch):
    step, short = Pretraining.step, [2]

    def without_memory(task, index, *rest):
        if short == [index]:
            short.pop()
            raise MemoryError
        return step(task, index, *rest)

    monkeypatch.setattr(Pretraining, "step", without_memory)
    steps, saves = [], []
    pretrain(RECIPE, on_step=lambda done: steps.append(done.step), on_save=saves.append, **options)
    assert steps == [1, 2, 3, 4, 5]
    assert [saved.step for saved in saves] == [2, 4, 5]


def test_an_interrupt_saves_and_the_same_call_resumes(options, uninterrupted):
    """As the stop button of a notebook, which sends SIGINT to the main thread."""

    def interrupt(step):
        if step.step == 3:
            signal.raise_signal(signal.SIGINT)

    saves = []
    with pytest.raises(Stopped, match="stopped by SIGINT after step 3") as stopped:
        pretrain(RECIPE, on_step=interrupt, on_save=saves.append, **options)
    assert stopped.value.__notes__ == ["The same call resumes the run."]
    assert [saved.step for saved in saves] == [2, 3]
    steps = []
    resumed = pretrain(RECIPE, on_step=steps.append, **options)
    assert [step.step for step in steps] == [4, 5]
    assert resumed.held_out == uninterrupted.held_out


def test_a_run_leaves_its_process_as_it_was(options, uninterrupted, monkeypatch, pictures):
    """And a second one in it, in another thread, trains the same."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)

    def settings():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
        loggers = [(name, logging.getLogger(name).handlers) for name in (None, "bimkern.train", "bimkern.data")]
        return (
            handlers,
            loggers,
            list(warnings.filters),
            Image.MAX_IMAGE_PIXELS,
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            sys.stdout,
            [thread.name for thread in threading.enumerate()],
        )

    before, outcomes = settings(), []
    thread = threading.Thread(target=lambda: outcomes.append(pretrain(RECIPE, **options)), daemon=True)
    thread.start()
    thread.join(120)
    outcomes.append(pretrain(RECIPE, **options | {"out": options["out"].with_name("second")}))
    assert settings() == before
    for outcome in outcomes:
        assert_same_training(outcome, uninterrupted)


def test_recipes_configs_and_settings_describe_the_same_run(options, photos, monkeypatch):
    configs = []
    monkeypatch.setattr("bimkern.api.run", lambda config, callbacks: configs.append(config))
    recipe = RECIPES["mae_vit_test"]
    options["data"] = str(photos)
    changes = {"method.masker.ratios": 0.5, "method.encoder.depth": 8}
    for named in ("mae_vit_test", recipe, recipe.config):
        pretrain(named, set=changes, **options)
    first = configs[0]
    assert configs == [first, first, first]
    assert first.run == replace(recipe.config.run, **options | {"data": photos})
    assert (first.method.masker.ratios, first.method.encoder.depth, first.method.taps) == ((0.5,), 8, (7,))


def test_epochs_replace_the_steps_of_a_recipe(monkeypatch):
    configs = []
    monkeypatch.setattr("bimkern.api.run", lambda config, callbacks: configs.append(config))
    pretrain("mae_vit_test", epochs=3)
    assert (configs[0].run.epochs, configs[0].run.steps) == (3, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 3}, r"pretrain has no option 'epoch' .*; did you mean epochs\?"),
        ({"mask_ratio": 0.5}, r"pretrain has no option 'mask_ratio' \(fields of the config are given by set={"),
        ({"epochs": 3, "steps": 4}, "run.epochs and run.steps both say how long the run is; set one of them"),
        ({"steps": 4, "set": {"run.steps": 5}}, "steps is given twice, as an option and as run.steps in set"),
        ({"steps": "many"}, "run.steps: must be .*, got 'many'"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"batch_size": 4, "slices": 8}, "--slices must be at most the images of a step, --batch-size 4, got 8"),
        ({"set": {"method.masker.ratio": 0.5}}, "RandomDrop has no field 'ratio'; did you mean ratios"),
        ({"recipe": "mae_vit_tset"}, r"unknown recipe 'mae_vit_tset' .*; did you mean mae_vit_test"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"data": []}, "--data must name a folder, got none"),
        ({"recipe": 3}, "recipe must be the name of one, a Recipe or a Config, got int"),
        ({"set": "run.seed=3"}, "set must hold values by paths, as in .*, got 'run.seed=3'"),
        ({"set": {3: 4}}, "set must hold values by paths, as in .*, got {3: 4}"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        pretrain(**{"recipe": "mae_vit_test"} | arguments)
    assert "\n" not in str(raised.value)


def test_errors_of_the_data_are_the_lines_of_the_command(tmp_path):
    with pytest.raises(ConfigError, match="lies inside --data"):
        pretrain("mae_vit_test", data=write_photos(tmp_path / "photos", count=2), out=tmp_path / "photos/run")
