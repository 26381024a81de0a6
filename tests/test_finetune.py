"""The fine-tuning command: its help, what its options set, its words, and mistakes in one line."""

import json
import re
import signal
import time
from textwrap import dedent

import pytest
import torch
from forked import ForkedCommand
from growing import repeatable
from interop import import_or_skip
from labeled_stripes import write_stripes
from options import filled
from safetensors.torch import save_file
from saved_runs import make_run

from bimkern.finetune import main
from bimkern.recipes import RECIPES
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.config.file import read_config
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.overrides import with_overrides

pytestmark = pytest.mark.usefixtures("pictures_on_request")

OPTIONS = (
    *("--help", "--show", "--dry-run", "--config", "--import", "--set", "--image-size", "--layer-decay", "--drop-path"),
    *("--ema", "--mixup", "--cutmix", "--smoothing", "--rand-augment", "--erase", "--crop-scale", "--warmup-epochs"),
    *("--weight-decay", "--data", "--out", "--epochs", "--steps", "--extend", "--batch-size", "--micro-batch"),
    *(
        "--base-lr",
        "--optimizer",
        "--precision",
        "--attention",
        "--device",
        "--seed",
        "--loader",
        "--cache",
        "--jpeg-draft",
    ),
    *(
        "--workers",
        "--range",
        "--held-out",
        "--max-bad-ratio",
        "--max-pixels",
        "--deterministic",
        "--compile",
        "--arena",
    ),
    *("--shard", "--dist-timeout", "--log"),
    *("--log-every", "--save-every", "--backbone", "--from-scratch", "--val", "--alpha", "--eval-every"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with labeled images, data, and an untrained run, run."""
    folder = tmp_path_factory.mktemp("finetune")
    write_stripes(folder / "data")
    make_run(folder / "run", "mae_vit_test")
    return folder


def arguments(folder, out, *options, data="data"):
    given = ["--backbone", str(folder / "run"), "--data", str(folder / data), "--out", str(out)]
    return [*given, *filled(options, workers=0, log_every=1, batch_size=8)]


def printed(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        main(list(options))
    assert stop.value.code == 0
    return capsys.readouterr().out


def refused(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, options)))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1, error
    return error


def test_help_lists_recipes_and_exactly_these_options(capsys):
    text = printed(capsys, "--help")
    assert re.findall(r"^\W*(?:-h, )?(--[a-z][a-z-]*)", text, flags=re.MULTILINE) == list(OPTIONS)
    assert all(re.search(rf"^\W*{name} ", text, flags=re.MULTILINE) for name in FINETUNE_RECIPES)


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ("mae_vit_base --layer-decay 0.7 --drop-path 0.2", {"layer_decay": 0.7, "drop_path": 0.2}),
        ("mae_vit_base --mixup 0 --smoothing 0.2", {"mixing.mixup": 0.0, "mixing.smoothing": 0.2}),
        ("mae_vit_base --rand-augment none --erase 0", {"augment.rand_augment": None, "augment.erase_prob": 0.0}),
        ("demo --ema 0.99 --image-size 32 --eval-every 2", {"ema": 0.99, "resized": 32, "run.eval_every": 2}),
        ("demo --set optim.betas=0.9,0.95 --warmup-epochs 1", {"optim.betas": "0.9,0.95", "schedule.warmup_epochs": 1}),
    ],
)  # fmt: skip
def test_options_are_short_for_fields(capsys, tmp_path, given, changes):
    recipe, *options = given.split()
    main([recipe, *options, "--show"])
    (tmp_path / "shown.toml").write_text(capsys.readouterr().out)
    shown = read_config(tmp_path / "shown.toml", FinetuneConfig)
    assert shown == with_overrides(FINETUNE_RECIPES[recipe].config, changes)
    main(["--config", str(tmp_path / "shown.toml"), "--show"])
    (tmp_path / "again.toml").write_text(capsys.readouterr().out)
    assert read_config(tmp_path / "again.toml", FinetuneConfig) == shown


def test_smoothing_alone_mixes_nothing(capsys, tmp_path):
    main(["demo", "--smoothing", "0.1", "--show"])
    (tmp_path / "shown.toml").write_text(capsys.readouterr().out)
    mixing = read_config(tmp_path / "shown.toml", FinetuneConfig).mixing
    assert (mixing.mixup, mixing.cutmix, mixing.smoothing) == (0, 0, 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mae_vit_bas --backbone run", "my_package.module:my_recipe); did you mean mae_vit_base, "),
        ("--data data", "--backbone is missing; name a pre-training run, or weights to begin with"),
        ("--backbone nothing", "--backbone nothing cannot be read (No such file or directory)"),
        ("mae_vit_base --backbone run", "the encoder differs: width is 32 instead of 768; depth is 4 instead"),
        ("--backbone timm.safetensors", "it does not say which encoder it holds, and demo takes any; choose a recipe"),
        ("mae_vit_base --backbone timm.safetensors", "the encoder differs: it has 1 layers instead of 12"),
        ("--backbone run --data data/train", "has no val beside train to evaluate on; name one with --val, or"),
        ("--backbone run --data data --held-out 0.2", "--held-out 0.2: the data holds out images of its own"),
        ("--backbone run --data data/train/down --val data/val", "lies in no class folder; put it into one"),
        ("--backbone run --data data/train --val data/train", "24 of 24 images to evaluate on, in data/train, are "),
        ("--backbone run --image-size 33", "run: resized: ViTConfig: image_size must be a multiple of patch=8, got 33"),
        ("--eval-every 0", "--eval-every must be above 0 and finite, got 0"),
        ("--layer-decay 0", "layer_decay must be in (0, 1], got 0.0"),
        ("--drop-path 1", "drop_path must be in [0, 1), got 1.0"),
        ("--ema 1", "ema must be in (0, 1), got 1"),
        ("--steps 3 --epochs 2", "--epochs and --steps both say how long the run is; give one of them"),
        ("--ema 0.9 --set ema=0.5", "--ema and --set ema set the same field; give one of them"),
        ("--batch-size 4 --micro-batch 8", "--micro-batch must be at most the images of a step, --batch-size 4, got 8"),
        ("--dry-run demo", "Unrecognized options: demo; the recipe comes first"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(folder, capsys, monkeypatch, given, message):
    monkeypatch.chdir(folder)
    if "timm.safetensors" in given:
        save_file({"blocks.0.norm1.weight": torch.ones(768)}, folder / "timm.safetensors")
    assert message in refused(capsys, *given.split())


def test_missing_weights_are_named(folder, capsys, tmp_path):
    state = checkpoints.load_latest(folder / "run" / "checkpoints").model
    encoder = {name.removeprefix("encoder."): t.clone() for name, t in state.items() if name.startswith("encoder.")}
    del encoder["blocks.2.norm2.bias"]
    save_file(encoder, tmp_path / "encoder.safetensors")
    error = refused(
        capsys,
        *("--backbone", tmp_path / "encoder.safetensors", "--set", "encoder.type=ViTConfig"),
        *("--set", "encoder.width=32", "--set", "encoder.depth=4", "--set", "encoder.num_heads=2"),
        *("--set", "encoder.patch=8", "--set", "encoder.image_size=32", "--data", folder / "data"),
    )
    assert "the encoder differs: it lacks blocks.2.norm2.bias" in error


def test_a_dry_run_tells_what_would_be_trained(folder, tmp_path, capsys):
    main(arguments(folder, tmp_path / "out", "--dry-run"))
    text = capsys.readouterr().out
    assert "24 in " in text
    assert "12 to evaluate on" in text
    assert "by layer       times 0.5905 0.6561 0.729 0.81 0.9 1, from the embedding to the last layer" in text
    assert "taken: encoder 51; left there: heads" in text
    assert not (tmp_path / "out").exists()


def test_words_at_the_end_say_how_good_it_is_and_how_to_load_it(folder, tmp_path, capsys):
    out = tmp_path / "cat's"
    main(arguments(folder, out, "--epochs", "1"))
    text = capsys.readouterr().out
    found = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"12 held-out images of 2 classes: top-1 {found['held_out_top1']:.1%}; loss" in text
    assert f'import timm\n  model = timm.create_model("local-dir:{out}/exported", pretrained=True)' in text


@pytest.mark.parametrize("recipe", ["mae_vit_test", "simmim_swin_tiny_test"])  # for timm, and in our own layout
def test_the_lines_that_load_a_classifier_do(folder, tmp_path, capsys, recipe):
    import_or_skip("timm")
    make_run(tmp_path / "run", recipe)
    given = filled((), workers=0, batch_size=8, steps=1)
    main(["--backbone", str(tmp_path / "run"), "--data", str(folder / "data"), "--out", str(tmp_path / "out"), *given])
    found = {}
    exec(dedent(capsys.readouterr().out.partition("To load it:\n")[2]), found)
    size = RECIPES[recipe].config.method.encoder.image_size
    assert found["model"](torch.randn(3, 3, size.height, size.width)).shape == (3, 2)


def test_a_share_can_be_held_out_and_positions_follow_another_size(folder, tmp_path, capsys):
    options = ["--held-out", "0.3", "--image-size", "40", "--epochs", "1"]
    main(arguments(folder, tmp_path / "out", *options, data="data/train"))
    table = checkpoints.load_latest(tmp_path / "out" / "checkpoints").model["encoder.positions.table"]
    assert table.shape == (1, 26, 32)
    assert "held-out images of 2 classes" in capsys.readouterr().out


@pytest.mark.long
def test_killed_at_any_step_it_resumes_bit_for_bit(folder, tmp_path, pictures):
    options = ["--steps", "24", "--save-every", "4", "--drop-path", "0.2", "--ema", "0.9", "--eval-every", "5"]
    process = ForkedCommand(["-m", "bimkern.finetune", *arguments(folder, tmp_path / "killed", *options)])
    while not any((tmp_path / "killed" / "checkpoints").glob("step-0000000[48]")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.kill_all()
    assert process.wait() == -signal.SIGKILL
    for out in ("killed", "whole"):
        main(arguments(folder, tmp_path / out, *options))
    assert repeatable(tmp_path / "killed") == repeatable(tmp_path / "whole")
    ours, theirs = (checkpoints.load_latest(tmp_path / out / "checkpoints").model for out in ("killed", "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert (tmp_path / "killed" / "pictures" / "confusion.png").is_file()
