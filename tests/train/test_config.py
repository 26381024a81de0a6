"""A config survives being written as JSON, and what cannot be read back is named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spectral import with_channels

from bimkern.data.sources.image_folder import ImageFolder
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import differences, from_json, to_json


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives(name):
    config = RECIPES[name].config
    config = replace(
        config, run=replace(config.run, data=Path("photos"), out=Path("runs/one"), micro_batch=2, slices=1)
    )
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_run_older_than_drafts_decoded_in_full():
    config = RECIPES["mae_vit_test"].config
    old = to_json(config)
    del old["run"]["jpeg_draft"]
    assert differences(old, to_json(config)) == ["run.jpeg_draft: 0.0 before, 4.0 now"]
    assert differences(old, to_json(replace(config, run=replace(config.run, jpeg_draft=0)))) == []


def changed(path, value):
    """The JSON of a recipe with one value replaced, added or, with ..., taken away."""
    saved = json.loads(json.dumps(to_json(RECIPES["mae_vit_test"].config)))
    *parents, last = path.split(".")
    position = saved
    for name in parents:
        position = position[name]
    position[last] = value
    if value is ...:
        del position[last]
    return saved


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("type", "Conf", "config: unknown type 'Conf'; choose one of Config"),
        ("method.flow.type", "Sideways", "config.method.flow: unknown type 'Sideways'; choose one of EndToEnd, Local"),
        ("method.heads", [3], r"config.method.heads\[0\]: must be HeadConfig, got 3"),
        (
            "method.encoder.heads",
            3,
            r"config.method.encoder.heads: ViTConfig has no such field; did you mean num_heads\?",
        ),
        ("method.encoder.width", ..., "config.method.encoder: .* argument: 'width'"),
        (
            "method.encoder.patch",
            5,
            "config.method.encoder: ViTConfig: image_size must be a multiple of patch=5, got 32",
        ),
    ],
)
def test_what_cannot_be_read_is_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        from_json(changed(path, value))


def test_a_value_that_json_cannot_hold_is_an_error_of_the_config():
    config = RECIPES["mae_vit_test"].config
    config = replace(config, schedule=replace(config.schedule, warmup=torch.tensor(0.05)))
    with pytest.raises(ConfigError, match=r"^config\.schedule\.warmup: a config holds .*, got Tensor$"):
        to_json(config)


def test_an_option_that_an_older_run_did_not_know_takes_its_default():
    assert from_json(changed("run.compile", ...)).run.compile is False


def test_crops_of_older_runs_were_bicubic():
    older, config = changed("augment.interpolation", ...), RECIPES["mae_vit_test"].config
    assert differences(older, to_json(config)) == []
    bilinear = replace(config, augment=replace(config.augment, interpolation="bilinear"))
    assert differences(older, to_json(bilinear)) == ["augment.interpolation: bicubic before, bilinear now"]


@pytest.mark.parametrize("data", [None, Path("a"), (Path("a"), Path("b"))], ids=str)
def test_folders_of_images_are_read_back(data):
    config = RECIPES["mae_vit_test"].config
    config = replace(config, run=replace(config.run, data=data), source=ImageFolder(paths=(Path("c"),)))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_where_images_lie_is_no_setting():
    config = RECIPES["mae_vit_test"].config
    moved = replace(
        config, run=replace(config.run, data=(Path("a"), Path("b"))), source=ImageFolder(paths=(Path("c"),))
    )
    assert differences(to_json(config), to_json(moved)) == []


@pytest.mark.parametrize("channels", [1, 5])
def test_channels_mean_and_std_belong_to_the_config(channels):
    config = with_channels(RECIPES["mae_vit_test"].config, channels)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    encoder = replace(config.method.encoder, channels=2)
    message = f"each of the encoder's 2 channels, got {config.method.mean}; set channels, mean and std together"
    with pytest.raises(ValueError, match=re.escape(f"Method: mean must hold a value for {message}")):
        replace(config.method, encoder=encoder)
