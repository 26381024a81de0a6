"""README and the manual: their code runs, their commands and links exist, and what is public is documented."""

import importlib
import inspect
import os
import re
import sys
import tomllib
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import get_type_hints

import commands
import manual_pages
import pytest
import torch
from interop import import_or_skip, own_features
from PIL import Image

import bimkern
from bench import cli
from bench.dropin import command as dropin_bench
from bench.profiling import command as profiling
from bench.scaling import command as scaling
from bench.studies import cli as studies
from bimkern import attention, finetune, ops, pack, pretrain, probe
from bimkern.data.check import check
from bimkern.data.listing import list_images
from bimkern.data.sources.find import find_source
from bimkern.export import Options
from bimkern.exporters.own import write_backbones
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.mim.schedule import Schedule
from bimkern.models.encoder import Encoder, EncoderConfig
from bimkern.pieces import from_json, to_json
from bimkern.plan import PlanOptions
from bimkern.recipes import RECIPES, WITH_BACKBONE
from bimkern.recipes.find import find_config
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from examples.transfer.command import Options as TransferOptions

ROOT = Path(__file__).parent.parent
PUBLIC = ("api", "ops", "nn", "arena", "dropin", "recipes")
TESTED = {"README.md", "docs/memory.md", "docs/extending.md", "docs/ops.md", "docs/backbones.md", "docs/api/api.md"}
TESTED |= {"docs/transfer.md"}
TESTED |= {"docs/first-hour.md"}  # in test_stranger.py
TESTED |= {"docs/data.md"}
TESTED |= {"docs/dropins.md"}  # in dropin/test_docs.py


def code_of(page):
    """The Python of a page, one block."""
    (code,) = manual_pages.python(ROOT / page)
    return code


def test_all_code_is_run():
    assert {page.relative_to(ROOT).as_posix() for page in manual_pages.PAGES if manual_pages.python(page)} == TESTED


@pytest.mark.parametrize("page", ["README.md", "docs/memory.md", "docs/api/api.md"])
def test_code_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code_of(page), {})


def test_a_batch_is_augmented_as_the_page_on_data_says():
    import_or_skip("timm")
    *_, code = manual_pages.python(ROOT / "docs/data.md")
    exec(code, found := {})
    assert found["targets"].sum(dim=1).tolist() == pytest.approx([1] * 8)


def test_a_class_of_images_is_read_as_the_page_on_data_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("sources_of_the_manual.py").write_text(manual_pages.python(ROOT / "docs/data.md")[0])
    listing = list_images(find_source(Path("sources_of_the_manual:Mine")))
    assert [one.width for one in check(listing, workers=0).values()] == [48] * 12


def test_own_recipes_and_pieces_are_what_the_manual_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    recipe, piece = manual_pages.python(ROOT / "docs/extending.md")
    Path("my_file_of_the_manual.py").write_text(recipe)
    config = find_config("my_file_of_the_manual.py:bim_light")
    assert config.recipe == "bim_light"
    assert [head.depth for head in config.method.heads] == [1]
    exec(piece, defined := {"__name__": "own_module"})
    schedule = defined["LinearDecay"]()
    assert to_json(schedule) == {"type": "LinearDecay", "from": "own_module"}
    assert from_json(to_json(schedule), Schedule, "schedule") == schedule


def test_every_member_of_an_encoder_is_named():
    text = (ROOT / "docs/extending.md").read_text()
    named = {name for protocol in (EncoderConfig, Encoder) for name in vars(protocol) if not name.startswith("_")}
    assert len(named) > 13
    assert not [name for name in named if f"`{name}`" not in text]


OPTIONS = {
    "bimkern.pretrain": pretrain.Options,
    "bimkern.finetune": finetune.Options,
    "bimkern.plan": PlanOptions,
    "bimkern.export": Options,
    "bimkern.probe": probe.Options,
    "bimkern.attention": attention.Options,
    "bimkern.pack": pack.Options,
}

RECIPES_OF = {
    "bimkern.pretrain": {*RECIPES, *WITH_BACKBONE},
    "bimkern.plan": {*RECIPES, *WITH_BACKBONE},
    "bimkern.finetune": set(FINETUNE_RECIPES),
}


def option_names(kind):
    """Yield the names of fields; those of a dataclass in place of a field that holds one."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield from option_names(hints[field.name]) if is_dataclass(hints[field.name]) else (field.name,)


@pytest.mark.parametrize("program", OPTIONS)
def test_commands_name_recipes_and_options_that_exist(program):
    known = {f"--{name.replace('_', '-')}" for name in option_names(OPTIONS[program])} | {"--help", "--import"}
    found = manual_pages.commands(program)
    assert found
    for arguments in found:
        named = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        assert named <= known, arguments
        recipes = RECIPES_OF.get(program)
        if recipes and arguments and not arguments[0].startswith("-"):
            assert arguments[0] in {*recipes, "RECIPE"} or re.fullmatch(r"[\w./]+:\w+", arguments[0])


def test_commands_of_the_bench_are_understood():
    patterns = {"[NAME...]", "RECIPE...", "--help"}
    found = [arguments for arguments in manual_pages.commands("bench") if not patterns & set(arguments)]
    assert len(found) > 3
    of_their_own = {"dropin": dropin_bench.parse, "scaling": scaling._parse, "profile": profiling.parse}
    of_their_own |= {name: partial(studies.parse, name) for name in ("digits", "photographs")}
    for arguments in found:
        parse = of_their_own.get(arguments[0]) if arguments else None
        cli.parse(arguments) if parse is None else parse(arguments[1:])


@pytest.mark.parametrize(
    "page", [*manual_pages.PAGES, *ROOT.glob("C*.md"), ROOT / "SECURITY.md"], ids=lambda page: page.stem
)
def test_links_lead_to_files(page):
    assert not [link for link in manual_pages.links(page) if not (page.parent / link).exists()]


def test_files_that_are_named_exist():
    for page in manual_pages.PAGES:
        named = re.findall(r"`((?:tests|bench|csrc|bimkern|docs|examples)/[\w./]+)`", page.read_text())
        assert not [name for name in named if not (ROOT / name).exists()], page


def test_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_recipes_that_are_named_exist():
    named = {name for page in manual_pages.PAGES for name in re.findall(r"`(\w+_vit_\w+)`", page.read_text())}
    assert len(named) > 20
    assert named <= set(RECIPES)


def test_scripts_and_citation_follow_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["scripts"].items():
        module, _, function = target.partition(":")
        assert name == module.removesuffix(".__main__").replace(".", "-")
        assert callable(getattr(importlib.import_module(module), function))
    assert f"\nversion: {bimkern.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_documented(name):
    module = importlib.import_module(f"bimkern.{name}")
    assert module.__doc__
    for public in module.__all__:
        item = getattr(module, public)
        if not callable(item):
            continue
        assert item.__doc__, f"{name}.{public}"
        methods = inspect.getmembers(item, inspect.isfunction) if inspect.isclass(item) else []
        for method, defined in methods:
            if not defined.__module__.startswith("bimkern"):  # transformers adds one to every nn.Module
                continue
            assert method.startswith("_") or inspect.getdoc(defined), f"{name}.{public}.{method}"


def test_the_demos_backbone_is_loaded_and_gives_its_own_features(tmp_path):
    """In a new process, where timm imports as it does for a user."""
    import_or_skip("timm")
    config = RECIPES["demo"].config
    model = MIM(config.method)
    write_backbones(tmp_path / "runs/demo/exported", Trained(config, 500, model.state_dict()))
    photo = Image.fromarray(torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8).numpy())
    photo.save(tmp_path / "photo.jpg")

    code = code_of("docs/backbones.md") + "import torch\ntorch.save(features, 'features.pt')"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    commands.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, check=True)
    features = torch.load(tmp_path / "features.pt", weights_only=True)

    expected = own_features(model, Image.open(tmp_path / "photo.jpg"))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_pyramid_reads_the_demos_backbone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RECIPES["demo"].config
    write_backbones(tmp_path / "runs/demo/exported", Trained(config, 500, MIM(config.method).state_dict()))
    exec(code_of("docs/transfer.md"), defined := {})
    assert [tuple(found.shape[2:]) for found in defined["maps"]] == [(64, 48), (32, 24), (16, 12), (8, 6)]


def test_commands_of_the_examples_name_options_that_exist():
    import_or_skip("torchvision")
    segmentation = importlib.import_module("examples.segmentation.__main__")
    for program, options in (
        ("examples.detection", TransferOptions),
        ("examples.segmentation", segmentation.SegmentationOptions),
    ):
        known = {f"--{name.replace('_', '-')}" for name in option_names(options)}
        found = manual_pages.commands(program)
        assert found
        assert all({word for word in arguments if word.startswith("--")} <= known for arguments in found)


def test_the_ops_alone_draw_other_masks_at_every_step(monkeypatch):
    drawn = []

    def record(*args, **kwargs):
        drawn.append(random_keep(*args, **kwargs))
        return drawn[-1]

    random_keep = ops.random_keep
    monkeypatch.setattr(ops, "random_keep", record)
    names = {}
    exec(code_of("docs/ops.md"), names)
    assert len(drawn) == 3
    assert len(torch.cat(drawn).unique(dim=0)) == 3 * 8
    assert torch.equal(
        names["visible"][:, 1:], names["tokens"][:, 1:].gather(1, drawn[-1][..., None].expand(-1, -1, 768))
    )
