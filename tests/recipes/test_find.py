"""Recipes by name: ours, and those of a user's own file or module."""

import sys

import pytest

from bimkern.mim.targets import Target
from bimkern.pieces import registered
from bimkern.recipes import RECIPES
from bimkern.recipes.find import UserCodeError, find_config, import_module
from bimkern.train.config.run import ConfigError

SOURCE = """
from dataclasses import replace
from bimkern.recipes import RECIPES, DeferredRecipe

recipe = RECIPES["mae_vit_test"]
config = recipe.config
nothing = None

def my_recipe(seed=3):
    return replace(config, recipe="mine", run=replace(config.run, seed=seed))

def needs(depth, *, width):
    return config

def returns_none():
    pass

def fails():
    return 1 / 0

deferred = DeferredRecipe(name="deferred", summary="", build=my_recipe)
deferred_fails = DeferredRecipe(name="deferred_fails", summary="", build=fails)
"""
_modules = iter(range(1000))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def written(folder, text=SOURCE, where=""):
    """Write a module whose name no other test has; return the name."""
    name = f"found_{next(_modules)}"
    (folder / where).mkdir(exist_ok=True)
    (folder / where / f"{name}.py").write_text(text)
    return name


def test_our_own_by_name():
    assert find_config("mae_vit_test") is RECIPES["mae_vit_test"].config


@pytest.mark.parametrize("form", ["{0}.py:{1}", "./{0}.py:{1}", "{2}/{0}.py:{1}", "{0}:{1}"])
def test_a_function_of_a_file_or_module(folder, form):
    name = written(folder)
    config = find_config(form.format(name, "my_recipe", folder))
    assert (config.recipe, config.run.seed) == ("mine", 3)
    assert find_config(form.format(name, "config", folder)) == find_config(form.format(name, "recipe", folder))
    assert find_config(form.format(name, "deferred", folder)) == config


def test_a_module_in_a_package(folder):
    name = written(folder, where="my_pkg")
    assert find_config(f"my_pkg.{name}:my_recipe").recipe == "mine"


def test_a_file_may_import_its_neighbors(folder):
    neighbor = written(folder, where="elsewhere")
    name = written(folder, f"from {neighbor} import my_recipe", where="elsewhere")
    assert find_config(f"elsewhere/{name}.py:my_recipe").recipe == "mine"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mae_vit_bas", "; did you mean mae_vit_base, "),
        ("mae_vit_bas", "(your own is named as my_file.py:my_recipe or my_package.module:my_recipe)"),
        ("byol", "; `python -m bimkern.pretrain --help` lists all"),
        ("missing.py:my_recipe", "there is no file missing.py"),
        ("{name}.py", "{name}.py must name its recipe too, as {name}.py:my_recipe"),
        ("{name}.py:", "{name}.py must name its recipe too, as {name}.py:my_recipe"),
        ("{name}.py:my_recip", "{name}.py has no 'my_recip'; did you mean my_recipe, recipe?"),
        ("{name}.py:nothing", "{name}.py has no 'nothing'; choose one of recipe, config, my_recipe, needs"),
        ("{name}.py:deferre", "{name}.py has no 'deferre'; did you mean deferred, "),
        ("{name}.py:needs", "{name}.py:needs must need no arguments; give depth, width a default"),
        ("{name}.py:returns_none", "must be a Config or Recipe, or a function that returns one; got NoneType"),
        ("{name}.py:RECIPES", "must be a Config or Recipe, or a function that returns one; got dict"),
        ("no_pkg.mod:my_recipe", "there is no module no_pkg; name a file with its .py, like my_file.py"),
        ("{name}.sub:my_recipe", "there is no module {name}.sub; name a file with its .py, like my_file.py"),
        ("my-file.py:my_recipe", "my-file.py cannot be imported; its name must be that of a Python module, "),
        ("json.py:my_recipe", "json.py has the name of a module that Python has imported already, "),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused_in_one_line(folder, reference, message):
    name = written(folder)
    for other in ("my-file.py", "json.py"):
        (folder / other).write_text(SOURCE)
    with pytest.raises(ConfigError) as refused:
        find_config(reference.format(name=name))
    assert message.format(name=name) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not isinstance(refused.value, UserCodeError)


@pytest.mark.parametrize(
    ("text", "function", "message", "cause"),
    [
        (SOURCE, ":fails", "{name}.py:fails ended with ZeroDivisionError: division by zero", ZeroDivisionError),
        (SOURCE, ":deferred_fails", "{name}.py:deferred_fails ended with ZeroDivisionError: ", ZeroDivisionError),
        ("import no_such_package", ":f", "{name}.py ended with ModuleNotFoundError: ", ModuleNotFoundError),
        ("def f(:", ":f", "{name}.py ended with SyntaxError: invalid syntax", SyntaxError),
        ("raise ValueError('two\\nlines')", ":f", "{name}.py ended with ValueError: two lines", ValueError),
    ],
)  # fmt: skip
def test_an_error_of_the_users_own_is_the_cause(folder, text, function, message, cause):
    name = written(folder, text)
    with pytest.raises(UserCodeError) as failed:
        find_config(f"{name}.py{function}")
    assert message.format(name=name) in str(failed.value)
    assert "\n" not in str(failed.value)
    assert isinstance(failed.value.__cause__, cause)


def test_importing_registers_pieces(folder):
    name = written(
        folder,
        "from bimkern import pieces\nfrom bimkern.mim.targets import PixelTarget, Target\n"
        "from dataclasses import dataclass\n\n"
        "@pieces.register(Target)\n@dataclass(frozen=True, kw_only=True)\nclass FoundTarget(PixelTarget): ...\n",
    )
    import_module(f"{name}.py")
    assert find_config("mae_vit_test") is RECIPES["mae_vit_test"].config
    assert registered(Target)["FoundTarget"].__module__ == name
