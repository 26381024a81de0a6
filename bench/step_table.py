"""The steps of several recipes side by side."""

from collections.abc import Mapping
from math import nan

from bench.entry import Measured
from bench.report import size_text
from bench.results import Row
from bimkern.recipes import RECIPES

_COLUMNS = ("recipe", "pixels", "images/s", "GFLOP/image", "of matrix", "live", "images/s sliced", "live", "eager/ours")
# Recipes of the same encoder that are told apart in a line of their own.
_COMPARED = (("fastmim_vit_base", "mae_vit_base"), ("fastmim_vit_base", "simmim_vit_base"))


def table(measured: Measured) -> str:
    """Lay out a line for every recipe, and the comparisons between those that are there."""
    recipes = {case.dims["recipe"]: {row.provider: row for row in rows} for case, rows in measured}
    lines = [_COLUMNS, *(_line(recipe, providers) for recipe, providers in recipes.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    laid_out = ["  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)) for line in lines]
    pairs = [pair for pair in _COMPARED if recipes.keys() >= {*pair}]
    compared = [_comparison(pair, *(recipes[recipe]["ours"] for recipe in pair)) for pair in pairs]
    dims = {key: value for key, value in measured[0][0].dims.items() if key != "recipe"}
    title = ", ".join([measured[0][0].dtype, *(f"{letter}={size}" for letter, size in dims.items())])
    return "\n".join([f"steps of {title}; live: activations at most at once", *laid_out, *compared])


def _line(recipe: str, providers: Mapping[str, Row]) -> tuple[str, ...]:
    ours, eager = providers["ours"], providers.get("eager")
    sliced = next((row for name, row in providers.items() if "slices" in name), None)
    return (
        recipe,
        str(RECIPES[recipe].config.method.encoder.image_size),
        _number(ours.items_per_s),
        _number(ours.gflop_per_item),
        f"{ours.share or nan:.0%}",
        size_text(ours.live_bytes or 0),
        _number(sliced.items_per_s) if sliced else "-",
        size_text(sliced.live_bytes or 0) if sliced else "-",
        f"{eager.ratio:.2f}" if eager else "none written",
    )


def _comparison(pair: tuple[str, str], one: Row, other: Row) -> str:
    sides = [RECIPES[recipe].config.method.encoder.image_size for recipe in pair]
    speed = (one.items_per_s or nan) / (other.items_per_s or nan)
    operations = (one.gflop_per_item or nan) / (other.gflop_per_item or nan)
    live = (one.live_bytes or 0) / (other.live_bytes or nan)
    return (
        f"{pair[0]} at {sides[0]} px against {pair[1]} at {sides[1]} px: {speed:.2f} times the images/s, "
        f"{operations:.2f} of the operations, {live:.2f} of the live activations"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
