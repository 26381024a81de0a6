"""Figures of matplotlib, which is imported with the first one: that takes 0.4 s, too long for `--help`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

_USUAL_COLORS = 10
_LONGEST_RUN = 32  # characters of a run's name


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, whose layout keeps labels apart."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(name: str) -> str:
    """Return the text that shows a name as it is: matplotlib takes what lies between two $ for a formula.

    Bytes that are no text, which the name of a folder may have, are escaped.
    """
    return name.replace("$", r"\$").encode(errors="backslashreplace").decode()


def shortened(name: str, length: int) -> str:
    """Return a name in at most so many characters: of a longer one, both ends."""
    if len(name) <= length:
        return name
    last = (length - 1) // 2
    return f"{name[: length - 1 - last]}…{name[len(name) - last :]}"


def short_names(runs: Iterable[str]) -> dict[str, str]:
    """Return names for a picture, by the path of each run: of several, from where they differ, and no two alike."""
    parts = {run: Path(run).parts for run in runs}
    levels = enumerate(zip(*parts.values(), strict=False))
    last = max(0, min(map(len, parts.values())) - 1)
    common = next((i for i, level in levels if len(set(level)) > 1), last) if len(parts) > 1 else 0
    whole = {run: f"{Path(*one[common:])}" for run, one in parts.items()}
    short = {run: shortened(name, _LONGEST_RUN) for run, name in whole.items()}
    return short if len(set(short.values())) == len(short) else whole


def legend_name(run: str) -> str:
    """Return the text that shows the path of a run in a legend, which leaves out what begins with an underscore."""
    return plain(f"./{run}" if run.startswith("_") else run)


def line_color(number: int, count: int) -> Any:
    """Return the color of one of several lines: matplotlib's usual ones repeat after ten."""
    if count <= _USUAL_COLORS:
        return f"C{number}"
    from matplotlib import colormaps

    return colormaps["turbo"](number / (count - 1))


def small_legend(axes: Any) -> None:
    """Name the lines of axes in a legend over them, which takes no room from them however long it is."""
    axes.legend(fontsize=7).set_in_layout(False)


def polygons(corners: Sequence[Sequence[tuple[float, float]]], **style: Any) -> "PolyCollection":
    """Return polygons to add to axes, as one object: thousands of single ones would take seconds to draw."""
    from matplotlib.collections import PolyCollection

    return PolyCollection(corners, **style)
