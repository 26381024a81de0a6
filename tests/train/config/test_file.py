"""Configs in files: what is written is read back as an equal config, and mistakes in a file are one line."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bimkern import pieces
from bimkern.data.source import Source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.recipes import RECIPES
from bimkern.train.config.file import read_config, to_toml
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import to_json

BIM = RECIPES["bim_vit_base"].config


def read(folder, text, suffix=".toml"):
    path = folder / f"config{suffix}"
    path.write_text(text)
    return read_config(path)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back(tmp_path, name):
    config = RECIPES[name].config
    assert read(tmp_path, to_toml(config)) == config
    assert read(tmp_path, json.dumps(to_json(config)), ".json") == config


@dataclass(frozen=True)
class Span:
    first: int
    last: int | None = 9


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class Filed(ImageFolder):
    """A source whose fields have every shape that a file may hold."""

    number: int | None = 3
    required: int | None
    spans: tuple[Span | int | None, ...] = ()
    nested: tuple[tuple[int, ...], ...] = ()
    by_name: dict[str, Span] | None = None


@pytest.mark.parametrize(
    "fields",
    [
        {"required": None},
        {"required": 1, "number": None},
        {"required": 1, "spans": (Span(1), Span(2, None)), "nested": ((), (1, 2))},
        {"required": 1, "spans": (Span(1), 3, None)},
        {"required": 1, "by_name": {"a b": Span(1), "c": Span(2, None)}},
    ],
    ids=str,
)
def test_none_and_nested_pieces_come_back(tmp_path, fields):
    config = replace(BIM, source=Filed(paths=(Path("a"), Path('"b"\\')), **fields))
    assert read(tmp_path, to_toml(config)) == config


def test_a_table_says_its_type_where_several_are_allowed(tmp_path):
    text = to_toml(BIM)
    assert '[method.masker]\ntype = "RandomDrop"\n' in text
    assert "# clip: none\n" in text
    for kind in ("Config", "Method", "RunConfig", "AdamWConfig", "RandomResizedCrop"):
        assert f'"{kind}"' not in text


def test_what_is_left_out_has_its_default(tmp_path):
    lines = [line for line in to_toml(BIM).splitlines() if not line.startswith(("epochs", "decoder_sees"))]
    assert read(tmp_path, "\n".join(lines)) == replace(BIM, run=replace(BIM.run, epochs=1.0))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("depth = 12", 'depth = "12"', "config.toml: config.method.encoder.depth: must be an integer, got '12'"),
        ("depth = 12", "deep = 12", "config.toml: config.method.encoder.deep: ViTConfig has no such field; did you"),
        ("depth = 12", "depth = 6", "config.toml: config.method: Method: taps must rise and end at the last layer, 5"),
        ("taps = [", "taps = [0.5, ", "config.method.taps[0]: must be an integer, got 0.5"),
        ("taps = [", "taps = ", "config.toml is no TOML file (Expected newline"),
        ('type = "RandomDrop"', 'type = "Mine"', "config.method.masker: unknown type 'Mine'; choose one of Block"),
        ('type = "RandomDrop"', "", "config.method.masker: unknown type None; choose one of Block"),
        ("batch_size = 4096", "batch_size = 0", "--batch-size must be at least 1, got 0"),
        ('precision = "bf16"', 'precision = "fp8"', "config.run.precision: must be one of fp32, bf16, fp16, got 'fp8'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_value(tmp_path, before, after, message):
    text = to_toml(BIM)
    assert before in text
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text.replace(before, after, 1))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"recipe": ')
    for name, message in (
        ("config.yaml", "must be a .json file, such as the config.json of a run, or a .toml file"),
        ("missing.toml", "missing.toml cannot be read (No such file or directory)"),
        ("folder.toml", "folder.toml cannot be read (Is a directory)"),
        ("binary.toml", "binary.toml is no TOML file ('utf-8' codec can't decode"),
        ("list.json", "list.json: config: must be Config, got [1]"),
        ("half.json", "half.json is no JSON file (Expecting value"),
    ):
        with pytest.raises(ConfigError) as refused:
            read_config(tmp_path / name)
        assert message in str(refused.value)
