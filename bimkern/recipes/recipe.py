"""What a recipe is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from bimkern.train.config.run import Config, TrainingConfig

C_co = TypeVar("C_co", bound=TrainingConfig, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[C_co]):
    """A named, complete config; options of the command line replace fields of its `run`."""

    summary: str  # one line, for --help
    config: C_co

    @property
    def name(self) -> str:
        return self.config.recipe


@dataclass(frozen=True, kw_only=True)
class DeferredRecipe:
    """A recipe whose config is built when it is asked for: that takes an optional package."""

    name: str
    summary: str
    build: Callable[[], Config]

    @cached_property
    def config(self) -> Config:
        """The config.

        Raises:
            ValueError: the package is missing.
        """
        return self.build()
