"""Fields of a config that are set by their path: what a value may be, and what is said about one that is not."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bimkern import pieces
from bimkern.data.source import Source
from bimkern.data.step_layout import Phase
from bimkern.mim.masking.blockwise import Blockwise
from bimkern.mim.masking.masker import Masker
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.schedule import Cosine, FreezeOut, MultiStep
from bimkern.mim.targets import HogTarget, PixelTarget
from bimkern.models.vit import ViTConfig
from bimkern.recipes import RECIPES
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train.config.overrides import field, parse_settings, with_overrides
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import to_json

BIM = RECIPES["bim_vit_base"].config
LOCALMIM = RECIPES["localmim_vit_base"].config


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class Listed:
    """A source whose fields have every shape; nothing is read from it."""

    counts: dict[str, int]
    spans: tuple[tuple[int, int], ...] = ()
    names: list[str] | str = "all"
    anything: Any = None
    held_out: Source | None = None
    paths: tuple[Path, ...] = ()

    def files(self): ...
    def stat(self, file): ...
    def open(self, file): ...
    def path(self, file): ...


def value_at(config, path):
    for name in path.split("."):
        config = config[int(name)] if name.isdecimal() else getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"method.masker.ratios": "0.6"}, "method.masker.ratios", (0.6,)),
        ({"method.masker.ratios": "[0.6, 0.7,0.8,0.9]"}, "method.masker.ratios", (0.6, 0.7, 0.8, 0.9)),
        ({"method.masker.ratios": [0.6]}, "method.masker.ratios", (0.6,)),
        ({"method.masker.ratios": 0.6}, "method.masker.ratios", (0.6,)),
        ({"method.targets": HogTarget()}, "method.targets", (HogTarget(),)),
        ({"method.masker": RandomDrop(ratios=(0.5,))}, "method.masker", RandomDrop(ratios=(0.5,))),
        ({"method.masker.type": "Blockwise", "method.masker.ratio": 0.4, "method.heads.type": "LinearConfig"},
         "method.masker", Blockwise(ratio=0.4)),
        ({"method.targets.type": "HogTarget"}, "method.targets", (HogTarget(),)),
        ({"method.targets": [HogTarget(bins=5)]}, "method.targets", (HogTarget(bins=5),)),
        ({"method.targets": [{"type": "HogTarget", "bins": 5}]}, "method.targets", (HogTarget(bins=5),)),
        ({"method": {"encoder.width": 96, "masker": {"ratios": 0.6}}}, "method.encoder.width", 96),
        ({"schedule.type": "MultiStep", "schedule.milestones": "0.9"}, "schedule",
         MultiStep(warmup_epochs=40, milestones=(0.9,))),
        ({"schedule.type": "FreezeOut"}, "schedule", FreezeOut(warmup_epochs=40)),
        ({"schedule.warmup_epochs": "none", "schedule.warmup": 0.1}, "schedule", Cosine(warmup=0.1)),
        ({"optim.clip": "1"}, "optim.clip", 1.0),
        ({"optim.undecayed": "[]"}, "optim.undecayed", ()),
        ({"run.data": "a,b"}, "run.data", Path("a,b")),
        ({"run.data": "[a, b]"}, "run.data", (Path("a"), Path("b"))),
        ({"run.precision": "fp16"}, "run.precision", "fp16"),
        ({"run.compile": "true"}, "run.compile", True),
        ({"phases": [Phase(share=1, image_size=224)]}, "phases", (Phase(share=1, image_size=224),)),
        ({"source.type": "Listed", "source.counts.a": "1", "source.spans": "[[1,2],[3,4]]", "source.names": "[a,b]"},
         "source", Listed(counts={"a": 1}, spans=((1, 2), (3, 4)), names=["a", "b"])),
        ({"source": Listed(counts={"a": 1}), "run.seed": 1}, "source.counts", {"a": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_a_field_is_set_by_its_path(changes, path, value):
    assert value_at(with_overrides(BIM, changes), path) == value


def test_nothing_else_changes():
    changed = with_overrides(BIM, {"method.encoder.mlp_ratio": 3})
    assert changed == replace(BIM, method=replace(BIM.method, encoder=replace(BIM.method.encoder, mlp_ratio=3)))
    assert changed.method.masker is BIM.method.masker
    assert with_overrides(BIM, {}) == BIM


def test_one_piece_of_several_or_all_of_them():
    one = with_overrides(LOCALMIM, {"method.heads.1.depth": "3"}).method.heads
    assert [head.depth for head in one] == [1, 3, 1, 1]
    every = with_overrides(LOCALMIM, {"method.heads.depth": 3}).method.heads
    assert every == tuple(replace(head, depth=3) for head in LOCALMIM.method.heads)


@pytest.mark.parametrize(
    ("recipe", "depth", "taps"),
    [("mae_vit_base", "6", (5,)), ("bim_vit_base", 8, (1, 3, 5, 7)), ("demo", 4, (0, 1, 2, 3))],
)
def test_equal_stages_stay_equal_with_another_depth(recipe, depth, taps):
    config = RECIPES[recipe].config
    assert with_overrides(config, {"method.encoder.depth": depth}).method.taps == taps


def test_taps_that_are_set_or_are_no_equal_stages_do_not_follow():
    assert with_overrides(BIM, {"method.encoder.depth": 8, "method.taps": "0,1,2,7"}).method.taps == (0, 1, 2, 7)
    with pytest.raises(ConfigError, match="method: taps must rise and end at the last layer, 7, got"):
        with_overrides(LOCALMIM, {"method.encoder.depth": 8})


def test_epochs_replace_the_steps_of_a_recipe():
    run = with_overrides(RECIPES["demo"].config, {"run.epochs": "3"}).run
    assert (run.epochs, run.steps) == (3.0, None)


def test_fields_are_checked_together():
    changed = with_overrides(BIM, {"method.encoder.patch": 15, "method.encoder.image_size": 210})
    assert changed.method.encoder == replace(BIM.method.encoder, patch=15, image_size=210)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod.masker": 1}, "metod: Config has no field 'metod'; did you mean method?"),
        ({"method.masker.ratio": "0.6"}, "method.masker.ratio: RandomDrop has no field 'ratio'; did you mean ratios?"),
        ({"optim.lr": "1"}, "optim.lr: AdamWConfig has no field 'lr'; choose one of betas, weight_decay, clip"),
        ({"method.encoder.depth": "six"}, "method.encoder.depth: must be an integer, got 'six'"),
        ({"method.encoder.depth": 6}, "method.encoder.depth: must be a multiple of the 4 stages, got 6; or set met"),
        ({"method.encoder.width": 6.5}, "method.encoder.width: must be an integer, got 6.5"),
        ({"method.encoder.width": True}, "method.encoder.width: must be an integer, got True"),
        ({"optim.clip": "x"}, "optim.clip: must be a number or none, got 'x'"),
        ({"optim.betas": "0.9"}, "optim.betas: must be 2 values, each a number, got 1"),
        ({"augment.scale": "0.2,x"}, "augment.scale.1: must be a number, got 'x'"),
        ({"run.precision": "fp8"}, "run.precision: must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"run.batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"method.encoder.patch": 15}, "method.encoder: image_size must be a multiple of patch=15, got 224"),
        ({"method.taps": "3"}, "method: taps must rise and end at the last layer, 11, got (3,)"),
        ({"method.masker": "RandomDrop"}, "method.masker: must be Masker, got 'RandomDrop'; set its fields, or method"),
        ({"method.masker": PixelTarget()}, "method.masker: must be Masker, got PixelTarget("),
        ({"method.masker.type": "RandmDrop"}, "method.masker.type: there is no 'RandmDrop'; did you mean RandomDrop?"),
        ({"method.masker.type": "Blockwise"}, "method.masker: Blockwise needs ratio; set method.masker.ratio too"),
        ({"run": 3}, "run: must be RunConfig, got 3; set its fields"),
        ({"method.heads.1.depth": 1}, "method.heads.1: method.heads holds 1 values, counted from 0; name one of them"),
        ({"run.steps.x": 1}, "run.steps.x: run.steps has no fields, it is an integer or none"),
        ({"source.paths": "a"}, "source is none so far; set source.type too, to one of ImageFolder, "),
        ({"run.epochs": 1, "run.steps": 1}, "run.epochs and run.steps both say how long the run is; set one of them"),
        ({"method.masker": RandomDrop(ratios=(0.5,)), "method.masker.ratios": 0.6}, "a piece above it are both set"),
        ({"method.masker.ratios": 0.6, "method.masker": RandomDrop(ratios=(0.5,))}, "and fields below it are both set"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_set_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError) as refused:
        with_overrides(BIM, changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_piece_that_follows_its_kind_needs_no_registration():
    @dataclass(frozen=True, kw_only=True)
    class Mine(RandomDrop):
        extra: int = 0

    changed = with_overrides(BIM, {"method.masker": Mine(ratios=(0.5,))})
    assert with_overrides(changed, {"method.masker.extra": "2"}).method.masker == Mine(ratios=(0.5,), extra=2)
    assert "Mine" not in pieces.registered(Masker)


def test_another_encoder_keeps_the_fields_of_the_same_name(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Other(ViTConfig):
        width: int = 1

    monkeypatch.setitem(pieces._NAMED[next(k for k in pieces._NAMED if k.__name__ == "EncoderConfig")], "Other", Other)
    assert with_overrides(BIM, {"method.encoder.type": "Other"}).method.encoder == Other(**vars(BIM.method.encoder))


def test_settings_are_paths_and_values():
    assert parse_settings(["a.b=1", "c=x=y", "d="]) == {"a.b": "1", "c": "x=y", "d": ""}
    for settings, message in (
        (["a"], "--set a: write a field and its value"),
        (["a=1", "a=2"], "--set a is given twi"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_settings(settings)


def numbers_of(value, path=""):
    """Yield the path of every number, or row of numbers, in a config as JSON, and how many they are."""
    is_row = isinstance(value, list) and value and all(isinstance(item, int | float) for item in value)
    if is_row or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield path, len(value) if is_row else 1
    elif isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_of(item, f"{path}.{name}" if path else f"{name}")


def test_no_number_of_a_config_may_be_infinite_or_nan():
    """Those of all recipes, each field of each piece once."""
    tested = set()
    for config in (recipe.config for recipes in (RECIPES, FINETUNE_RECIPES) for recipe in recipes.values()):
        for path, count in numbers_of(to_json(config)):
            owner, _, name = re.sub(r"\.\d+", "", path).rpartition(".")
            kind = type(config), type(field(config, owner) if owner else config), name
            if kind not in tested:
                tested.add(kind)
                for wrong in ("nan", "inf", "-inf"):
                    with pytest.raises(ConfigError):
                        with_overrides(config, {path: ",".join([wrong] * count)})
