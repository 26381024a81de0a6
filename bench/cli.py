"""The options of `python -m bench`, and which entries they select."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from bench.entries import compare, finetune, freeze, step
from bench.entry import FLOATS, Entry, discover
from bench.results import FOLDER
from bench.variants import KNOWN
from bimkern.mim import recompute

_USAGE = """\
python -m bench [NAME...] [options]   or   python -m bench step|compare|freeze|finetune [RECIPE...] [options]
       or   python -m bench traffic [OP...] [--lines] [--save]
       or   python -m bench dropin [HOST...] [--batch-size N] [--rounds N] [--parts] [--quick]
       or   python -m bench digits|photographs [--methods NAME...] [--seeds N] [--processes N] [--quick] [--show]
       or   python -m bench profile [RECIPE...] [--dtype DTYPE] [--batch-size N] [--rounds N]
       or   python -m bench scaling [--rounds N] [--share S] [--draw]"""
_DESCRIPTION = """\
Check ops and training steps against their references, time them in turns with alternatives (plain torch, torch.compile,
the usual form in other programs), and append the results to bench/results/<device>.csv. Without a NAME: everything.
"""


class UsageError(Exception):
    """The command line asks for what is not there; the message is one line."""


class Parser(argparse.ArgumentParser):
    """Raises a UsageError for what it cannot read."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class Options:
    entries: list[Entry]
    device: torch.device
    quick: bool
    rounds: int | None
    process_time: bool
    cold: bool
    out: Path | None  # None: rows are not kept
    list_names: bool
    picture: bool

    def arguments(self, entry: Entry) -> list[str]:
        """Return the command line that selects one entry in the same way."""
        chosen = [entry.name, *entry.arguments, "--device", str(self.device)]
        if self.rounds is not None:
            chosen += ["--rounds", str(self.rounds)]
        return [*chosen, "--quick"] if self.quick else chosen


def parse(arguments: Sequence[str]) -> Options:
    """Read a command line.

    Raises:
        UsageError: a name, a value or a device is not there; the message gives the choices.
    """
    given = _parser().parse_intermixed_args(arguments)
    device = check_device(given.device)
    if given.process_time and device.type != "cpu":
        raise UsageError(f"--process-time belongs to a CPU, got --device {given.device}")
    out = given.out or FOLDER / f"{device.type}.csv"
    return Options(
        entries=_entries(given, device),
        device=device,
        quick=given.quick,
        rounds=given.rounds,
        process_time=given.process_time,
        cold=not (given.no_cold or given.process_time) and device.type == "cpu",
        out=None if (given.quick and given.out is None) or given.no_save or given.process_time else out,
        list_names=given.list,
        picture=given.picture,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench", usage=_USAGE, description=_DESCRIPTION)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="an entry from --list; behind step, compare, freeze, finetune: recipes"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="one shape, a small batch, few rounds; save nothing")
    parser.add_argument("--rounds", type=positive, help="rounds per provider; default: as many as fit into 2 s")
    parser.add_argument(
        "--process-time", action="store_true", help="time by the CPU time of all threads, on a busy CPU; save nothing"
    )
    parser.add_argument("--no-cold", action="store_true", help="skip the second pass, with cold malloc, on a CPU")
    parser.add_argument("--out", type=Path, help="CSV file to append to; default: bench/results/<device>.csv")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--all", action="store_true", help="step: all recipes of base models")
    parser.add_argument("--batch-size", type=positive, help="step, compare, freeze, finetune: images per step")
    parser.add_argument("--dtype", choices=FLOATS, help="step, compare: of matrix products; default: float32 on a CPU")
    parser.add_argument("--no-eager", action="store_true", help="step, compare: without the usual loops of others")
    parser.add_argument(
        "--recompute", type=_recomputed, metavar="LAYERS", help="step: also a step that recomputes, as in pretrain"
    )
    parser.add_argument("--list", action="store_true", help="list the entries, then stop")
    parser.add_argument("--picture", action="store_true", help="draw the newest rows of the CSV file, then stop")
    return parser


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _recomputed(text: str) -> str:
    """Read which layers run again."""
    try:
        recompute.check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def check_device(name: str) -> torch.device:
    """Read the name of a device that is there.

    Raises:
        UsageError: it is not.
    """
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here")
    return torch.device(name)


def _entries(given: argparse.Namespace, device: torch.device) -> list[Entry]:
    known = discover()
    first, *recipes = given.names or [None]
    for name, value in (("--all", given.all), ("--recompute", given.recompute)):
        if value and first != step.NAME:
            raise UsageError(f"{name} belongs to `python -m bench step`")
    for name, value in (("--dtype", given.dtype), ("--no-eager", given.no_eager)):
        if value and first not in (step.NAME, compare.NAME):
            raise UsageError(f"{name} belongs to `python -m bench step` and `compare`")
    if first == step.NAME:
        check_recipes("is named", recipes, KNOWN)
        chosen, again = step.BASE_RECIPES if given.all else tuple(recipes), given.recompute or recompute.NONE
        return [step.step_entry(chosen, given.batch_size, given.dtype, again, others=not given.no_eager)]
    if first == compare.NAME:
        check_recipes("is named", recipes, KNOWN)
        others = not given.no_eager
        return [compare.compare_entry(tuple(recipes), given.batch_size, given.dtype, others=others)]
    if first == freeze.NAME:
        check_recipes("that freezes layers is named", recipes, freeze.RECIPES_THAT_FREEZE)
        return [freeze.freeze_entry(tuple(recipes), given.batch_size)]
    if first == finetune.NAME:
        check_recipes("of fine-tuning a ViT is named", recipes, finetune.RECIPES)
        return [finetune.finetune_entry(tuple(recipes), given.batch_size)]
    if given.batch_size:
        raise UsageError("--batch-size belongs to `python -m bench step`, `compare`, `freeze` and `finetune`")
    unknown = [name for name in given.names if name not in known]
    if unknown:
        raise UsageError(f"no entry is named {unknown[0]!r}; choose from {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(given.names or known)]


def check_recipes(kind: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise UsageError where one of the names is not among those that are known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no recipe {kind} {unknown[0]!r}; choose from {', '.join(known)}")
