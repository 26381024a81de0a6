"""Common to the commands that look into trained encoders: what they read, and how they end."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from bimkern.cli import command
from bimkern.data.formats import allow_pixels, pil_settings_kept
from bimkern.errors import BimkernError
from bimkern.evaluate.backbone import Backbone, read_backbone
from bimkern.evaluate.options import write_picture
from bimkern.output import printing, say
from bimkern.recipes.find import import_module


class OfRuns(Protocol):
    """Options that name encoders, the modules that these need, the largest image, and what to write."""

    @property
    def runs(self) -> tuple[Path, ...]: ...
    @property
    def modules(self) -> tuple[str, ...]: ...
    @property
    def max_pixels(self) -> int | None: ...
    @property
    def picture(self) -> Path | None: ...
    @property
    def json(self) -> bool: ...


Options = TypeVar("Options", bound=OfRuns)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a command ends with."""

    text: str
    draw: Callable[[Path], None]
    name: str  # of the picture in a run folder
    error: BimkernError | None = None  # what the command ends with, once all is shown


def run_command(
    program: str,
    kind: type[Options],
    description: str,
    run: Callable[[Options, dict[str, Backbone]], Findings],
    argv: Sequence[str] | None,
) -> None:
    """Parse arguments, by default those of the process, print what `run` finds in encoders, and draw it.

    An error ends the process with one line and an exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    with command.ended_in_a_line(program):
        options = command.parse(kind, arguments, usage=f"{program} RUN...", description=description)
        for source in options.modules:
            import_module(source)
        backbones = {str(path): read_backbone(path) for path in options.runs}
        with pil_settings_kept():
            allow_pixels(options.max_pixels or max(backbone.max_pixels for backbone in backbones.values()))
            found = run(options, backbones)
        with printing():
            print(found.text)
        picture = write_picture(found.draw, options.picture, options.runs[0], found.name)
        if picture is not None and not options.json:
            say(f"\nWrote {picture}")
        if found.error is not None:
            raise found.error
