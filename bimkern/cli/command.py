"""Common to all commands: options from a dataclass, and usage errors in one line."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import is_dataclass
from itertools import groupby, pairwise
from traceback import format_exception
from types import NoneType, TracebackType
from typing import Any, NoReturn, Protocol, TypeVar, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from bimkern.annotations import describe
from bimkern.distributed import launch
from bimkern.errors import BimkernError, closest
from bimkern.output import printing, say
from bimkern.recipes.find import UserCodeError
from bimkern.train.config.run import ConfigError

Options = TypeVar("Options")

_REPEATED = ("set", "import")  # options that may be given several times
_REMOTE = ("--data", "--val")  # options that may name an address
_URL = re.compile(r"(?:--[\w-]+=)?([a-z][a-z0-9+.-]*://.*)")
_TYPES = ConstructorRegistry()


class Parts(Protocol):
    """Options that split the images of a step."""

    @property
    def batch_size(self) -> int: ...
    @property
    def micro_batch(self) -> int | None: ...


def parse(
    kind: type[Options],
    arguments: Sequence[str],
    *,
    usage: str,
    description: str,
    default: Any = tyro.MISSING_NONPROP,
    addresses: bool = False,
) -> Options:
    """Parse arguments into a dataclass of options, with an instance as default; `--help` prints and exits.

    Args:
        kind: the dataclass.
        arguments: those of the command.
        usage: how the command is called.
        description: the text of --help.
        default: an instance.
        addresses: let any argument be an address, not only those of --data.

    Raises:
        ConfigError: an argument is unknown, has an invalid value, or is given twice; one line that names it and the
            choices.
    """
    remote = {word for option in _REMOTE for word in _words(arguments, option)}
    for url in filter(None, map(_URL.fullmatch, arguments)):
        if url[1] not in remote and not addresses:
            raise ConfigError(f"{url[1]} is an address; give the path of a local file or folder")
    counts = Counter(_names(arguments))
    if twice := [name for name, count in counts.items() if count > 1 and name not in _REPEATED]:
        raise ConfigError(f"--{twice[0].replace('_', '-')} is given {counts[twice[0]]} times; give it once")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), printing():
            return tyro.cli(
                kind,
                prog=usage,
                description=description,
                default=default,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
                registry=_TYPES,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_explain(_first_sentence(errors.getvalue()), kind, arguments)) from None


def values(arguments: Sequence[str], name: str) -> list[str]:
    """Return what an option is given, before all are parsed; one without a value is left to that."""
    found = [after for option, after in pairwise([*arguments, "--"]) if option == f"--{name}"]
    found += [option.partition("=")[2] for option in arguments if option.startswith(f"--{name}=")]
    return [value for value in found if not value.startswith("--")]


def named(arguments: Sequence[str]) -> set[str]:
    """Return the options that the arguments set, spelled as fields."""
    return set(_names(arguments))


def _names(arguments: Sequence[str]) -> list[str]:
    return [a.partition("=")[0].lstrip("-").replace("-", "_") for a in arguments if a.startswith("--")]


def check_parts(given: Collection[str], options: Parts) -> None:
    """Check that no part that is given is larger than the batch. Parts from a recipe are clipped instead.

    Args:
        given: the options that are given, spelled as fields.
        options: the values of all.

    Raises:
        ConfigError: a part is larger; the message names both options.
    """
    for name in ("micro_batch", "slices"):  # those of fine-tuning have no slices
        value = getattr(options, name, None)
        if name in given and value is not None and value > options.batch_size:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be at most the images of a step, --batch-size {options.batch_size}, "
                f"got {value}"
            )


@contextlib.contextmanager
def ended_in_a_line(program: str) -> Iterator[None]:
    """End a command that keeps nothing with one line: on errors of ours and of the system, and on Ctrl-C."""
    try:
        yield
    except BimkernError as error:
        report(program, error)
    except OSError as error:
        end_by_system(program, error)
    except KeyboardInterrupt:
        end(program, "interrupted", exit_code=128 + signal.SIGINT)


def report(program: str, error: BimkernError, note: str = "") -> NoReturn:
    """End a command with an error: its line, and above it, where a user's own code failed, the traceback of that."""
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        cause = error.__cause__
        say("".join(format_exception(cause.with_traceback(_own_frames(cause)))).rstrip(), sys.stderr)
    if error.reported or (error.reported is None and launch.env_rank()):  # before ranks are connected, all have it
        sys.exit(error.exit_code)
    end(program, f"{error}{note}", exit_code=error.exit_code)


def end_by_system(program: str, error: OSError) -> NoReturn:
    """End a command with an error of the system; a name that no file can have is a wrong argument."""
    if error.errno == errno.ENAMETOOLONG:
        name = "" if error.filename is None else f"{error.filename}: "
        end(program, f"{name}{os.strerror(error.errno)}", exit_code=ConfigError.exit_code)
    end(program, f"cannot continue ({error})", exit_code=1)


def _own_frames(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error from where a user's own code begins."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("bimkern", "importlib"):
        frames = frames.tb_next
    return frames


def end(program: str, message: str, *, exit_code: int) -> NoReturn:
    """End a command early, with one line that gives the reason."""
    say(f"{program}: {message}", sys.stderr)
    sys.exit(exit_code)


@_TYPES.primitive_rule
def _none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
    """Spell none as --set and config files do, in any case."""
    if info.type is not NoneType:
        return None

    def read(words: list[str]) -> None:
        if words[0].lower() != "none":
            raise ValueError(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="none",
        instance_from_str=read,
        is_instance=lambda value: value is None,
        str_from_instance=lambda value: ["none"],
    )


def _explain(message: str, kind: type, arguments: Sequence[str]) -> str:
    """Say what tyro's message says in the words of our own errors, and what it leaves out."""
    hints = _hints(kind)
    sides = _words(arguments, "--image-size")
    if len(sides) == 2 and all(map(str.isdigit, sides)):
        return f"--image-size takes height and width in one word: write --image-size {'x'.join(sides)}"
    if unknown := re.match(r"Unrecognized options: (--[^ ,=]+)", message):
        return f"there is no option {unknown[1]}; {closest(unknown[1], hints, 'see --help')}"
    if missing := re.match(r"Missing from [^:]*: ([A-Z]+) ", message):
        return f"{missing[1]} is missing; see --help"
    if missing := re.match(r"Missing value for argument '(--[\w-]+)'\. Expected (\d+) values", message):
        return f"{missing[1]} needs {'a value' if missing[2] == '1' else f'{missing[2]} values'}"
    if wrong := re.match(r"(?:Error parsing |invalid choice .* for argument ')(--[\w-]+)", message):
        return f"{wrong[1]} must be {describe(hints[wrong[1]])}, got {' '.join(_words(arguments, wrong[1]))!r}"
    return re.sub(r"^Error parsing [\w.]+: ", "", message)  # of a dataclass, whose own message follows


def _hints(kind: Any) -> dict[str, Any]:
    """Return the annotations of all options by name."""
    found: dict[str, Any] = {}
    annotated = get_type_hints(kind, include_extras=True)
    for field, hint in get_type_hints(kind).items():
        extras = getattr(annotated[field], "__metadata__", ())
        name = next((extra.name for extra in extras if getattr(extra, "name", None)), field)
        found |= _hints(hint) if is_dataclass(hint) else {f"--{name.replace('_', '-')}": hint}
    return found


def _words(arguments: Sequence[str], option: str) -> list[str]:
    """Return all that is given to an option."""
    found: list[str] = []
    inside = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            inside = name.replace("_", "-") == option
            found += [value] if inside and equals else []
        elif inside:
            found.append(argument)
    return found


def _first_sentence(box: str) -> str:
    """Extract the message from tyro's output: a title and paragraphs between rules, in a frame if it can draw one."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    if lines[0].startswith("╭"):
        lines[0:1] = [lines[0], "─"]  # the title stands in the frame itself
    paragraphs = [" ".join(group) for rule, group in groupby(lines, lambda text: not text.strip("─-")) if not rule]
    return paragraphs[1] if len(paragraphs) > 1 else " ".join(paragraphs)
