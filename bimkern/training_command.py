"""Common to the commands that train: how they end, whatever ends them."""

import logging
import signal
import sys
from collections.abc import Callable, Sequence

from bimkern import command, distributed
from bimkern.errors import BimkernError
from bimkern.output import Warnings, printing
from bimkern.train.signals import Stopped, Terminated, terminated_at_once

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
        command.end(program, f"cannot continue ({error})", exit_code=1)
    if distributed.env_rank() == 0:
        with printing():
            print(words)
