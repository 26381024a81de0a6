"""Common to the commands that train: how they end, whatever ends them."""

import logging
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from bimkern.cli import command
from bimkern.distributed import launch
from bimkern.errors import BimkernError
from bimkern.output import Warnings, printing
from bimkern.train.config.run import ConfigError
from bimkern.train.signals import Stopped, Terminated, terminated_at_once

Options = TypeVar("Options")
_RESUMES = "; the same command resumes the run"


def run_command(program: str, run: Callable[[list[str]], str], argv: Sequence[str] | None) -> None:
    """Run a command on its arguments, by default those of the process, and print the text that it returns.

    An error or a signal ends the process with one line and an exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(message)s", handlers=[Warnings()])
    try:
        with terminated_at_once():
            words = run(arguments)
    except BimkernError as error:
        command.report(program, error, note=_RESUMES if isinstance(error, Stopped) else "")
    except Terminated as end:
        command.end(program, f"stopped by SIGTERM{_RESUMES}", exit_code=end.exit_code)
    except KeyboardInterrupt:
        command.end(program, f"interrupted{_RESUMES}", exit_code=128 + signal.SIGINT)
    except OSError as error:
        command.end_by_system(program, error)
    if launch.env_rank() == 0:
        with printing():
            print(words)


def parse_options(
    arguments: list[str], defaults: Options, *, usage: str, description: str, recipes: Collection[str]
) -> Options:
    """Parse the options of a run; those that are not given are as in defaults, whose `run` has RunOptions.

    Raises:
        ConfigError: an argument is wrong, or two say how long the run is.
    """
    kind: Any = type(defaults)
    try:
        options: Any = command.parse(kind, arguments, usage=usage, description=description, default=defaults)
    except ConfigError as error:
        hint = "; the recipe comes first" if set(recipes) & set(arguments) else ""
        raise ConfigError(f"{error}{hint}") from None
    if {"epochs", "steps"} <= command.named(arguments) and options.run.steps is not None:
        raise ConfigError("--epochs and --steps both say how long the run is; give one of them")
    parsed: Options = options
    return parsed
