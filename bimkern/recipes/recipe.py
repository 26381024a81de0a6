"""What a recipe is."""

from dataclasses import dataclass

from bimkern.train.config.run import Config


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named, complete config; options of the command line replace fields of its `run`."""

    summary: str  # one line, for --help
    config: Config

    @property
    def name(self) -> str:
        return self.config.recipe
