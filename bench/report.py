"""What the bench prints: a block for every case, a line for every provider."""

from collections.abc import Mapping, Sequence

from bench.entry import Entry
from bench.results import Row

ITEMS = {"replay": "allocations"}  # what is counted in a pass; else images
_LEGEND = (
    "median time (p20, p80)  2.00x: twice that of the first line  CPU: of all threads of the process  "
    "+: peak of memory beside inputs"
)
_UNITS = ((1e6, "s"), (1e3, "ms"), (0, "us"))
_SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (0, "B"))


def listing(entries: Sequence[Entry]) -> str:
    width = max(len(entry.name) for entry in entries)
    return "\n".join(f"{entry.name:{width}}  {entry.summary}" for entry in entries)


def heading(provenance: Mapping[str, object]) -> str:
    machine = "{device_name} ({device}, {threads} host threads), torch {torch}, commit {commit}"
    return f"{machine}\n{_LEGEND}".format_map(provenance)


def case(rows: Sequence[Row]) -> str:
    """Lay out the rows of one case."""
    first = rows[0]
    title = f"\n{first.op}  {first.pass_}  {first.dtype}  {first.shape}"
    if first.ceiling_value is not None:
        unit = "GB/s" if first.ceiling == "copy" else "TFLOP/s"
        title += f"   [ceiling: {first.ceiling} {first.ceiling_value:.4g} {unit}]"
    width = max(len(row.label) for row in rows)
    return "\n".join([title, *(f"  {row.label:{width}}  {_figures(row, first)}" for row in rows)])


def _figures(row: Row, first: Row) -> str:
    figures = [f"{time_text(row.median_us):>9} (p20 {time_text(row.p20_us)}, p80 {time_text(row.p80_us)})"]
    if row.cold_median_us is not None:
        figures.append(f"cold {time_text(row.cold_median_us)}")
    figures.append(f"{row.ratio:.2f}x")
    if row.process_median_us is not None:
        figures.append(f"CPU {time_text(row.process_median_us)} {row.own_us / first.own_us:.3f}x")
    if row.gb_per_s is not None:
        figures.append(f"{row.gb_per_s:.4g} GB/s")
    if row.tflop_per_s is not None:
        figures.append(f"{row.tflop_per_s:.4g} TFLOP/s")
    if row.share is not None:
        figures.append(f"{row.share:.1%} of {row.ceiling}")
    if row.items_per_s is not None:
        figures.append(f"{row.items_per_s:.4g} {ITEMS.get(row.pass_, 'images')}/s")
    if row.gflop_per_item is not None:
        figures.append(f"{row.gflop_per_item:.4g} GFLOP/image")
    figures.append(f"+{size_text(row.extra_bytes)}")
    if row.live_bytes is not None:
        figures.append(f"live {size_text(row.live_bytes)}")
    return "  ".join(figures)


def time_text(microseconds: float) -> str:
    scale, unit = next((scale, unit) for scale, unit in _UNITS if microseconds >= scale)
    return f"{microseconds / (scale or 1):.3g} {unit}"


def size_text(count: int) -> str:
    scale, unit = next((scale, unit) for scale, unit in _SIZES if count >= scale)
    return f"{count / (scale or 1):.4g} {unit}"
