"""`python -m bench profile`: where the time of training steps goes, as a table, a CSV file and a picture."""

import csv
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import cli, malloc, results
from bench.entry import FLOATS
from bench.profiling import picture
from bench.profiling.measure import Profile, measure
from bench.profiling.parts import PARTS
from bench.timing import Ceilings, process_clock
from bench.variants import KNOWN

RESULTS = results.FOLDER / "cpu_profile.csv"
RECIPES = ("mae_vit_base", "bim_vit_base", "bim_vit_base_light", "localmim_vit_base")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parse(arguments)
    malloc.restart_warm(["profile", *arguments])
    ceilings = Ceilings(torch.device("cpu"), process_clock, quick=False)
    provenance = results.provenance(torch.device("cpu"))
    profiles = []
    print(_line("recipe", "dtype", "s", "of matrix", *PARTS), flush=True)
    for recipe in given.recipes or RECIPES:
        for dtype in given.dtype or FLOATS:
            profiles.append(measure(recipe, dtype, given.batch_size, given.rounds, ceilings))
            print(_described(profiles[-1]), flush=True)
    if not given.no_save:
        _write(given.out, profiles, provenance)
        picture.draw(given.out.with_suffix(".png"), profiles, provenance)
        print(f"\n{given.out} and {given.out.with_suffix('.png')}")
    return 0


def parse(arguments: Sequence[str]) -> Namespace:
    """Read a command line.

    Raises:
        UsageError: it cannot be read, or names no recipe.
    """
    parser = cli.Parser(
        prog="python -m bench profile",
        description="Profile training steps on a CPU: the share of a step that matrix products, attention, layer norm, "
        "GELU, our ops, copies, sums and the update take, and how near it is to the speed of a matrix product.",
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"default: {', '.join(RECIPES)}")
    parser.add_argument("--dtype", action="append", choices=FLOATS, help="of matrix products; default: both")
    parser.add_argument("--batch-size", type=cli.positive, default=4, help="images of a step; default: 4")
    parser.add_argument("--rounds", type=cli.positive, default=3, help="steps that are profiled; default: 3")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"CSV file, with a PNG beside it; default: {RESULTS}")
    parser.add_argument("--no-save", action="store_true", help="print only")
    given = parser.parse_intermixed_args(arguments)
    cli.check_recipes("is named", given.recipes, KNOWN)
    return given


def _described(profile: Profile) -> str:
    parts = (f"{share:.1%}" for share in profile.parts.values())
    return _line(profile.recipe, profile.dtype, f"{profile.step_s:.3f}", f"{profile.matrix_share:.0%}", *parts)


def _line(recipe: str, dtype: str, *figures: str) -> str:
    widths = (7, 9, *map(len, PARTS))
    return "  ".join([f"{recipe:24} {dtype:8}", *(f"{text:>{w}}" for text, w in zip(figures, widths, strict=True))])


def _write(path: Path, profiles: Sequence[Profile], provenance: dict[str, Any]) -> None:
    """Write a row for every profile, in place of those of an earlier run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "dtype", "batch_size", "step_s", "matrix_share", *PARTS, *provenance])
        for profile in profiles:
            figures = [f"{value:.4g}" for value in (profile.step_s, profile.matrix_share, *profile.parts.values())]
            writer.writerow([profile.recipe, profile.dtype, profile.batch_size, *figures, *provenance.values()])
