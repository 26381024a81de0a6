"""The steps of several recipes side by side."""

from collections.abc import Mapping
from math import nan

from bench.entry import Measured
from bench.report import size_text
from bench.results import Row
from bench.variants import KNOWN

_COLUMNS = ("recipe", "pixels", "images/s", "GFLOP/image", "of matrix", "live", "images/s sliced", "live", "eager/ours")
# Recipes that are compared in a line of their own.
_COMPARED = (
    ("fastmim_vit_base", "mae_vit_base"),
    ("fastmim_vit_base", "simmim_vit_base"),
    ("greenmim_swin_base", "simmim_swin_base_224"),
    ("localmim_swin_base", "simmim_swin_base_224"),
    ("localmim_swin_base", "maskfeat_vit_base"),
)


def table(measured: Measured) -> str:
    """Lay out a line for every recipe, and the comparisons between those that are there."""
    recipes = {case.dims["recipe"]: {row.provider: row for row in rows} for case, rows in measured}
    lines = [_COLUMNS, *(_line(recipe, providers) for recipe, providers in recipes.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    laid_out = ["  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)) for line in lines]
    pairs = [pair for pair in _COMPARED if recipes.keys() >= {*pair}]
    compared = [comparison(*((titled(recipe), recipes[recipe]["ours"]) for recipe in pair)) for pair in pairs]
    dims = {key: value for key, value in measured[0][0].dims.items() if key != "recipe"}
    title = ", ".join([measured[0][0].dtype, *(f"{letter}={size}" for letter, size in dims.items())])
    return "\n".join([f"steps of {title}; live: activations at most at once", *laid_out, *compared])


def _line(recipe: str, providers: Mapping[str, Row]) -> tuple[str, ...]:
    ours, eager = providers["ours"], providers.get("eager")
    sliced = next((row for name, row in providers.items() if "slices" in name), None)
    return (
        recipe,
        str(KNOWN[recipe].config.method.encoder.image_size),
        _number(ours.items_per_s),
        _number(ours.gflop_per_item),
        f"{ours.share or nan:.0%}",
        size_text(ours.live_bytes or 0),
        _number(sliced.items_per_s) if sliced else "-",
        size_text(sliced.live_bytes or 0) if sliced else "-",
        f"{eager.ratio:.2f}" if eager else "none written",
    )


def titled(recipe: str) -> str:
    return f"{recipe} at {KNOWN[recipe].config.method.encoder.image_size} px"


def comparison(first: tuple[str, Row], second: tuple[str, Row]) -> str:
    """Say in a line how a step, by its title and row, compares with another one."""
    (title, one), (other_title, other) = first, second
    speed = (one.items_per_s or nan) / (other.items_per_s or nan)
    operations = (one.gflop_per_item or nan) / (other.gflop_per_item or nan)
    live = (one.live_bytes or 0) / (other.live_bytes or nan)
    return (
        f"{title} against {other_title}: {speed:.2f} times the images/s, "
        f"{operations:.2f} of the operations, {live:.2f} of the live activations"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
