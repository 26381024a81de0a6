"""Options that set fields of a config, on the command line: what they set, and one line for what they cannot."""

import json
import os
import re
import sys
from dataclasses import replace

import commands
import pytest

from bimkern import plan, pretrain
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.schedule import Cosine
from bimkern.recipes import RECIPES
from bimkern.train.config.file import read_config, to_toml
from bimkern.train.config.overrides import with_overrides


@pytest.fixture
def shown(capsys, tmp_path):
    """Return the config that --show prints for arguments."""

    def show(*arguments):
        pretrain.main([*arguments, "--show"])
        (tmp_path / "shown.toml").write_text(capsys.readouterr().out)
        return read_config(tmp_path / "shown.toml")

    return show


def refused(capsys, arguments, main=pretrain.main):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    return message


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ("mae_vit_base --image-size 112x96", {"method.encoder.image_size": "112x96"}),
        ("mae_vit_base --image-size 112 --patch-size 8", {"method.encoder.image_size": 112, "method.encoder.patch": 8}),
        ("bim_vit_base_growing --mask-ratio 0.6", {"method.masker.ratios": 0.6}),
        ("bim_vit_base_growing --mask-ratio .5 .6 .7 .8", {"method.masker.ratios": [0.5, 0.6, 0.7, 0.8]}),
        ("simmim_vit_base --mask-ratio 0.5", {"method.masker.ratio": 0.5}),
        ("bim_vit_base --blocks 6", {"method.taps": [1, 3, 5, 7, 9, 11]}),
        ("bim_vit_base --blocks 2 --set method.encoder.depth=8", {"method.encoder.depth": 8, "method.taps": [3, 7]}),
        ("mae_vit_base --blocks 2 --set method.flow.type=Local", {"method.flow.type": "Local", "method.taps": "5,11"}),
        ("localmim_vit_base --decoder-depth 2", {"method.heads.depth": 2}),
        ("demo --warmup-epochs 2", {"schedule.warmup": 0, "schedule.warmup_epochs": 2}),
        ("mae_vit_base --weight-decay 0.1 --clip 3", {"optim.weight_decay": 0.1, "optim.clip": 3}),
        ("simmim_vit_base --clip None", {"optim.clip": None}),
        ("simmim_vit_base --clip none", {"optim.clip": None}),
        ("mae_vit_base --crop-scale 0.3 0.9", {"augment.scale": (0.3, 0.9)}),
        ("mae_vit_base --mean .5 .5 .5 --std .2 .2 .2", {"method.mean": [0.5] * 3, "method.std": [0.2] * 3}),
        ("demo --set run.seed=3 --batch-size 8 --epochs 2", {"run.seed": 3, "run.batch_size": 8, "run.epochs": 2}),
        ("demo --set=run.seed=3 --set optim.clip=1", {"run.seed": 3, "optim.clip": 1}),
        ("demo --seed 0 --mean 0.485 0.456 0.406", {}),
    ],
)  # fmt: skip
def test_every_option_is_short_for_fields(shown, arguments, changes):
    recipe, *options = arguments.split()
    assert shown(recipe, *options) == with_overrides(RECIPES[recipe].config, changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("mae_vit_base --blocks 4", "--blocks is for stages that learn independently (method.flow.type=Local), got"),
        ("localmim_vit_base --blocks 2", "--blocks is for stages that learn independently"),
        ("bim_vit_base --blocks 5", "--blocks: the 12 layers cannot be cut into 5 equal stages"),
        ("bim_vit_base --blocks 0", "--blocks: the 12 layers cannot be cut into 0 equal stages"),
        ("bim_vit_base_growing --blocks 6", "ratios must hold one value, or one per stage (6), got 4"),
        ("simmim_vit_base --mask-ratio 0.5 0.6", "--mask-ratio: TokenReplace masks the same for every stage; give"),
        ("simmim_vit_base --decoder-depth 2", "method.heads.0.depth: LinearConfig has no field 'depth'; choose"),
        ("mae_vit_base --mask-ratio 1.5", "method.masker: ratios must be in (0, 1), got (1.5,)"),
        ("mae_vit_base --mask-ratio x", "--mask-ratio must be values, each a number, got 'x'"),
        ("mae_vit_base --image-size 225", "method.encoder: image_size must be a multiple of patch=16, got 225"),
        ("mae_vit_base --image-size 160x200", "method.encoder: image_size must be a multiple of patch=16, got 160x200"),
        ("mae_vit_base --image-size 160x", "method.encoder.image_size: must be the side of a square in pixels"),
        ("fastmim_p_vit_large --image-size 160", "image_size=160, got 192; set phases.2.image_size too"),
        ("mae_vit_base --mean 0.5", "method: mean must hold a value for each of the encoder's 3 channels, got (0.5,)"),
        ("mae_vit_base --image-size=224.0", "or height x width, such as 160x320, got '224.0'"),
        ("mae_vit_base --image-size 224 160", "takes height and width in one word: write --image-size 224x160"),
        ("mae_vit_base --image-size=224x160 --epohcs 3", "there is no option --epohcs"),
        ("mae_vit_base --mean a b --clip 1", "--mean must be values, each a number, got 'a b'"),
        ("mae_vit_base --decoder-depth -1", "method.heads.0: depth must be at least 0, got -1"),
        ("mae_vit_base --set method.heads.num_heads=0", "method.heads.0: num_heads must be at least 1, got 0"),
        ("mae_vit_base --set method.heads.mlp_ratio=0", "heads.0: mlp_ratio must be above 0 and finite, got 0.0"),
        ("mae_vit_base --set method.encoder.mlp_ratio=inf", "mlp_ratio must be above 0 and finite, got inf"),
        ("localmim_vit_base --set method.targets.cells=0", "method.targets.0: cells must be at least 1, got 0"),
        ("mae_vit_base --std 1 1 nan", "method: std must be above 0 and finite, got (1.0, 1.0, nan)"),
        ("mae_vit_base --mean nan 0 0", "method: mean must be finite, got (nan, 0.0, 0.0)"),
        ("mae_vit_base --set augment.flip=2", "augment: flip must be in [0, 1], got 2.0"),
        ("mae_vit_base --set schedule.final_lr=1e39", "final_lr must be at least 0 and at most 3.4e+38, got 1e+39"),
        ("mae_vit_base --set schedule.final=-1", "schedule: final must be at least 0 and finite, got -1.0"),
        ("mae_vit_base --weight-decay -1", "optim: weight_decay must be at least 0 and finite, got -1.0"),
        ("mae_vit_base --clip 0", "optim: clip must be above 0 and finite, or none, got 0.0"),
        ("mae_vit_base --set optim.betas=0.9,1", "optim: betas must be in [0, 1), got (0.9, 1.0)"),
        ("mae_vit_base --crop-scale 0.5", "--crop-scale needs 2 values"),
        ("mae_vit_base --warmup-epochs -3", "schedule: warmup_epochs must be at least 0 and finite, got -3.0"),
        ("demo --set method.maskr.ratios=1", "method.maskr: Method has no field 'maskr'; did you mean masker?"),
        ("demo --set a", "--set a: write a field and its value, as in --set method.encoder.depth=6"),
        ("demo --set run.seed=1 --set run.seed=2", "--set run.seed is given twice; give it once"),
        ("demo --set run.seed=1 --seed 2", "--seed and --set run.seed set the same field; give one of them"),
        ("demo --set method.masker.ratios=.5 --mask-ratio .5", "--mask-ratio and --set method.masker.ratios set"),
        ("demo --set run.epochs=1 --steps 2", "run.epochs and run.steps both say how long the run is; set one of them"),
        ("demo --set", "--set needs a value"),
        ("demo --config x.toml", "demo and --config x.toml both name a config; give one of them"),
        ("--config x.toml", "x.toml cannot be read (No such file or directory)"),
        ("--config", "--config needs a value"),
        ("demo --import missing.py", "there is no file missing.py"),
        ("demo --import a.py:my_recipe", "a.py:my_recipe must be a file or module alone, without a name in it"),
        ("missing.py:my_recipe", "there is no file missing.py"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("main", [pretrain.main, plan.main], ids=["pretrain", "plan"])
def test_a_mistake_is_one_line(capsys, monkeypatch, tmp_path, main, arguments, message):
    if main is plan.main and re.search("seed|steps", arguments):
        pytest.skip("no option of plan")
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, arguments.split(), main)
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_shown_recipe_is_the_same_config_in_another_command(capsys, shown, tmp_path):
    config = shown("bim_vit_test", "--mask-ratio", "0.5", "--micro-batch", "4")
    assert config.method.masker == RandomDrop(ratios=(0.5,))
    again = shown("--config", str(tmp_path / "shown.toml"))
    assert again == config
    assert shown("--config", str(tmp_path / "shown.toml"), "--seed", "3") == replace(
        config, run=replace(config.run, seed=3)
    )
    plan.main(["--config", str(tmp_path / "shown.toml"), "--json"])
    first = json.loads(capsys.readouterr().out)
    plan.main(["bim_vit_test", "--mask-ratio", "0.5", "--micro-batch=4", "--json"])
    assert json.loads(capsys.readouterr().out) == first


OWN = '''
from dataclasses import dataclass, replace

from bimkern import pieces
from bimkern.mim.masking.masker import Masker
from bimkern.mim.masking.random import RandomDrop
from bimkern.recipes import RECIPES


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class OwnMasker(RandomDrop):
    """Drop patches at random."""


def my_recipe():
    base = RECIPES["bim_vit_test"].config
    return replace(base, recipe="mine", method=replace(base.method, masker=OwnMasker(ratios=(0.5,))))


def fails():
    return {}["missing"]
'''


def test_a_recipe_of_ones_own_trains_resumes_from_its_config_and_exports(capsys, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_file.py").write_text(OWN)

    def run(module, *arguments):
        command = [sys.executable, "-m", f"bimkern.{module}", *arguments]
        ran = commands.run(command, cwd=tmp_path, env=os.environ)
        assert ran.returncode == 0, ran.stderr

    first = ("pretrain", "code/my_file.py:my_recipe", "--set", "run.batch_size=4", "--device", "cpu", "--workers", "0")
    run(*first, "--steps", "2")
    saved = tmp_path / "runs/mine/config.json"
    assert json.loads(saved.read_text())["method"]["masker"]["from"] == "my_file"
    unknown = refused(capsys, ["--config", str(saved)])
    assert "unknown type 'OwnMasker'; import my_file, which defines it, first (a command: --import my_file)" in unknown
    assert unknown.count("\n") == 1
    metrics = (tmp_path / "runs/mine/metrics.jsonl").read_text()
    run("pretrain", "--config", str(saved), "--import", "code/my_file.py")
    assert (tmp_path / "runs/mine/metrics.jsonl").read_text() == metrics  # it was complete
    run("export", "runs/mine", "--import", "code/my_file.py", "--out", "exported")
    assert (tmp_path / "exported").is_dir()


def test_an_error_in_the_users_function_shows_their_lines_above_ours(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_failing_file.py").write_text("def f():\n    return {}['missing']\n")
    *above, last = refused(capsys, ["my_failing_file.py:f"]).splitlines()
    assert last == "python -m bimkern.pretrain: my_failing_file.py:f ended with KeyError: 'missing'"
    assert above[0] == "Traceback (most recent call last):"
    assert [line for line in above if line.startswith("  File")] == [
        f'  File "{tmp_path / "my_failing_file.py"}", line 2, in f'
    ]


def test_help_shows_the_values_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["bim_vit_base_growing", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "(default: 0.65 0.7 0.8 0.85)",
        "recipe options",
        "run options",
        "method.encoder.patch. (default: 16)",
    ):
        assert words in text


def test_recipes_have_configs_to_build_on():
    """What docs/compatibility.md promises."""
    config = RECIPES["mae_vit_base"].config
    assert config.schedule == Cosine(warmup_epochs=40)
    assert to_toml(config).startswith('recipe = "mae_vit_base"\n')
