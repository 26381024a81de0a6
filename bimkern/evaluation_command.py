"""Common to the commands that look into trained encoders: what they read, and how they end."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from bimkern import command
from bimkern.errors import BimkernError
from bimkern.evaluate.backbone import Backbone, read_backbone
from bimkern.output import printing
from bimkern.recipes.find import import_module


class OfRuns(Protocol):
    """Options that name encoders, and the modules that these need."""

    @property
    def runs(self) -> tuple[Path, ...]: ...
    @property
    def modules(self) -> tuple[str, ...]: ...


Options = TypeVar("Options", bound=OfRuns)


def run_command(
    program: str,
    kind: type[Options],
    description: str,
    run: Callable[[Options, dict[str, Backbone]], str],
    argv: Sequence[str] | None,
) -> None:
    """Parse arguments, by default those of the process, and print what `run` makes of options and encoders.

    An error ends the process with one line and an exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    try:
        options = command.parse(kind, arguments, usage=f"{program} RUN...", description=description)
        for source in options.modules:
            import_module(source)
        text = run(options, {str(path): read_backbone(path) for path in options.runs})
    except BimkernError as error:
        command.report(program, error)
    with printing():
        print(text)
