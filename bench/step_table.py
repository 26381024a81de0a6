"""The steps of several recipes side by side."""

from collections.abc import Mapping
from math import nan

from bench.eager import form, hf_loop
from bench.entry import Measured
from bench.report import size_text
from bench.results import Row
from bench.step_runs import EAGER, HF
from bench.variants import KNOWN

_COLUMNS = ("recipe", "pixels", "images/s", "GFLOP/image", "of matrix", "live", "sliced/ours", "live")
_OTHERS = (EAGER, HF)
# Recipes that are compared in a line of their own.
_COMPARED = (
    ("bim_vit_base_light", "mae_vit_base"),
    ("bim_vit_base_depth2", "mae_vit_base"),
    ("bim_vit_large_light", "mae_vit_large"),
    ("bim_vit_large_depth2", "mae_vit_large"),
    ("fastmim_vit_base", "mae_vit_base"),
    ("fastmim_vit_base", "simmim_vit_base"),
    ("greenmim_swin_base", "simmim_swin_base_224"),
    ("localmim_swin_base", "simmim_swin_base_224"),
    ("localmim_swin_base", "maskfeat_vit_base"),
)
_AGAIN = ", recomputed: "


def sliced_name(slices: int) -> str:
    """Name the step of ours whose heads decode in slices."""
    return f"ours, {slices} slices" if slices > 1 else "ours"


def again_name(slices: int, choice: str) -> str:
    """Name the step of ours in which layers run again."""
    return f"{sliced_name(slices)}{_AGAIN}{choice}"


def table(measured: Measured) -> str:
    """Lay out a line for every recipe, and the comparisons between those that are there."""
    recipes = {case.dims["recipe"]: {row.provider: row for row in rows} for case, rows in measured}
    lines = [(*_COLUMNS, *(f"{other}/ours" for other in _OTHERS))]
    lines += [_line(recipe, providers) for recipe, providers in recipes.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    laid_out = ["  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)) for line in lines]
    again = [text for recipe, providers in recipes.items() for text in _recomputed(recipe, providers)]
    pairs = [pair for pair in _COMPARED if recipes.keys() >= {*pair}]
    compared = [comparison(*((titled(recipe), recipes[recipe]["ours"]) for recipe in pair)) for pair in pairs]
    dims = {key: value for key, value in measured[0][0].dims.items() if key != "recipe"}
    title = ", ".join([measured[0][0].dtype, *(f"{letter}={size}" for letter, size in dims.items())])
    clock = "; times over ours in CPU time" if measured[0][1][0].process_median_us else ""
    heading = f"steps of {title}; live: activations at most at once{clock}"
    return "\n".join([heading, *laid_out, *_left_out(list(recipes)), *again, *compared])


def _line(recipe: str, providers: Mapping[str, Row]) -> tuple[str, ...]:
    ours = providers["ours"]
    sliced = next((row for name, row in providers.items() if "slices" in name and _AGAIN not in name), None)
    times = ((other, providers.get(other)) for other in _OTHERS)
    return (
        recipe,
        str(KNOWN[recipe].config.method.encoder.image_size),
        _number(ours.items_per_s),
        _number(ours.gflop_per_item),
        f"{ours.share or nan:.0%}",
        size_text(ours.live_bytes or 0),
        f"{sliced.own_us / ours.own_us:.2f}" if sliced else "-",
        size_text(sliced.live_bytes or 0) if sliced else "-",
        *(f"{row.own_us / ours.own_us:.2f}" if row else "none" for _, row in times),
    )


def _left_out(recipes: list[str]) -> list[str]:
    """Say why ViTMAE was not measured, if one of the recipes has its network."""
    forms = (form.find_form(KNOWN[recipe].config.method) for recipe in recipes)
    reason = hf_loop.unusable() if any(found and hf_loop.has_network(found) for found in forms) else None
    return [] if reason is None else [f"{HF}, Hugging Face's ViTMAE, is left out: transformers: {reason}"]


def _recomputed(recipe: str, providers: Mapping[str, Row]) -> list[str]:
    """Compare steps that recompute with the same ones that keep all."""
    return [
        f"{titled(recipe)}, {name}: {row.own_us / kept.own_us:.3f} of the time, "
        f"{(row.live_bytes or 0) / (kept.live_bytes or nan):.3f} of the live activations of {kept.provider}"
        for name, row in providers.items()
        if _AGAIN in name and (kept := providers[name.partition(_AGAIN)[0]])
    ]


def titled(recipe: str) -> str:
    return f"{recipe} at {KNOWN[recipe].config.method.encoder.image_size} px"


def comparison(first: tuple[str, Row], second: tuple[str, Row]) -> str:
    """Say in a line how a step, by its title and row, compares with another one."""
    (title, one), (other_title, other) = first, second
    speed = (one.items_per_s or nan) / (other.items_per_s or nan)
    operations = (one.gflop_per_item or nan) / (other.gflop_per_item or nan)
    live = (one.live_bytes or 0) / (other.live_bytes or nan)
    return (
        f"{title} against {other_title}: {one.own_us / other.own_us:.3f} of the time, {speed:.2f} times the images/s, "
        f"{operations:.2f} of the operations, {live:.2f} of the live activations"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
