"""Configs by name: of our recipes, and of what a user's own file or module defines."""

import importlib
import inspect
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bimkern.errors import closest
from bimkern.recipes import RECIPES, WITH_BACKBONE
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.recipes.recipe import DeferredRecipe, Recipe
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.run import Config, ConfigError, TrainingConfig

__all__ = ["UserCodeError", "find_config", "find_finetune_config", "import_module"]

T = TypeVar("T")
C = TypeVar("C", bound=TrainingConfig)
_FORM = "my_file.py:my_recipe or my_package.module:my_recipe"


class UserCodeError(ConfigError):
    """The file or module of a user raised an error, which is the cause of this one."""


def find_config(name: str, backbone: str | None = None) -> Config:
    """Return the config of a recipe: one of ours by name, or one that a file or module defines.

    Args:
        name: of a recipe; or my_file.py:my_recipe or my_package.module:my_recipe, where my_recipe is a Config, a
            Recipe, or a function that returns one and needs no arguments. The module is imported, and its pieces are
            registered thereby.
        backbone: name in timm, for the recipes that take one.

    Raises:
        ConfigError: there is no such recipe, file, module or attribute, or it is no config; or no such backbone.
        UserCodeError: the module cannot be imported, or the function raises an error.
    """
    if backbone is not None or name in WITH_BACKBONE:
        return _with_backbone(name, backbone)
    if name in RECIPES:
        return _built(name, lambda: RECIPES[name].config)
    return _own(name, Config, [*RECIPES, *WITH_BACKBONE], "pretrain")


def find_finetune_config(name: str) -> FinetuneConfig:
    """Return the config of a recipe of fine-tuning: one of ours by name, or one that a file or module defines.

    Args:
        name: as for find_config, of a FinetuneConfig, a Recipe that holds one, or a function that returns one.

    Raises:
        ConfigError, UserCodeError: as find_config.
    """
    if name in FINETUNE_RECIPES:
        return FINETUNE_RECIPES[name].config
    return _own(name, FinetuneConfig, FINETUNE_RECIPES, "finetune")


def _own(name: str, kind: type[C], known: Collection[str], command: str) -> C:
    """Return the config that a file or module defines; the known names, and the command, are for messages."""
    source, colon, attribute = name.rpartition(":")
    if not colon and not _is_file(name):
        hint = closest(name, known, f"`python -m bimkern.{command} --help` lists all")
        raise ConfigError(f"unknown recipe {name!r} (your own is named as {_FORM}); {hint}")
    if not source or not attribute:
        file = name.strip(":")
        raise ConfigError(f"{file} must name its recipe too, as {file}:my_recipe")
    module = import_module(source)
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigError(f"{source} has no {attribute!r}; {closest(attribute, _offers(module))}")
    return _config_of(found, name, kind)


def _with_backbone(name: str, backbone: str | None) -> Config:
    if name not in WITH_BACKBONE:
        raise ConfigError(f"--backbone is for the recipes {', '.join(WITH_BACKBONE)}, got {name}")
    if backbone is None:
        raise ConfigError(f"{name} needs --backbone NAME, one of timm.list_models(), such as convnextv2_tiny")
    return _built(f"--backbone {backbone}", lambda: WITH_BACKBONE[name](backbone))


def _built(what: str, build: Callable[[], Config]) -> Config:
    try:
        return build()
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error


def import_module(source: str) -> ModuleType:
    """Import a Python file, such as my_file.py, or a module by its name; its pieces register themselves.

    The folder of a file comes first among those that Python imports from, as with `python my_file.py`.

    Raises:
        ConfigError: there is no such file or module, or another module has the name of the file.
        UserCodeError: it cannot be imported.
    """
    if ":" in source:
        raise ConfigError(f"{source} must be a file or module alone, without a name in it")
    if not _is_file(source):
        return _import_by_name(source)
    path = Path(source).resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {source}")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ConfigError(f"{source} cannot be imported; its name must be that of a Python module, like my_file.py")
    _search(path.parent)
    module = _run(source, lambda: importlib.import_module(path.stem))
    if (file := getattr(module, "__file__", None)) is None or Path(file).resolve() != path:
        raise ConfigError(f"{source} has the name of a module that Python has imported already, {file}; rename it")
    return module


def _import_by_name(name: str) -> ModuleType:
    _search(Path.cwd())  # as `python -m` does; a console script does not
    try:
        return _run(name, lambda: importlib.import_module(name))
    except UserCodeError as error:
        missing = getattr(error.__cause__, "name", None)
        if isinstance(error.__cause__, ModuleNotFoundError) and missing and f"{name}.".startswith(f"{missing}."):
            raise ConfigError(f"there is no module {missing}; name a file with its .py, like my_file.py") from None
        raise


def _config_of(found: Any, name: str, kind: type[C]) -> C:
    if callable(found):
        if needed := _needed(found):
            raise ConfigError(f"{name} must need no arguments; give {', '.join(needed)} a default")
        found = _run(name, found)
    config = _run(name, lambda: found.config) if isinstance(found, (Recipe, DeferredRecipe)) else found
    if not isinstance(config, kind):
        wanted = f"must be a {kind.__name__} or Recipe, or a function that returns one"
        raise ConfigError(f"{name} {wanted}; got {type(config).__name__}")
    return config


def _needed(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _run(name: str, call: Callable[[], T]) -> T:
    """Run what a user wrote."""
    try:
        return call()
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserCodeError(f"{name} ended with {type(error).__name__}: {text}") from error


def _offers(module: ModuleType) -> list[str]:
    """Return the names in a module that may be recipes: its own functions, configs and recipes."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, (TrainingConfig, Recipe, DeferredRecipe))
        or (inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"))
    ]


def _is_file(source: str) -> bool:
    return source.endswith(".py") or "/" in source


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
