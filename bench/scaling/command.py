"""`python -m bench scaling`: two ranks joined by a slow cable, held against a model that then tells of 1024 devices."""

import csv
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import cli, results
from bench.scaling import picture
from bench.scaling.measure import Measured, Run, measure
from bench.scaling.model import Link
from bench.scaling.namespaces import NoNamespaces
from bench.scaling.projection import Device, lines, measured_phases

RESULTS = results.FOLDER / "scaling.csv"
_ALLOWED = 0.15  # of the model's error
_LINKS = {
    "NVLink and InfiniBand": Link(bytes_per_s=5e10, latency_s=1e-5),
    "100 Gbit Ethernet": Link(bytes_per_s=1.25e10, latency_s=3e-5),
}
_FIELDS = (
    *("method", "compute_s", "wire_s", "step_s", "predicted_s", "wait_s", "overlapped", "gradient_bytes", "wire_bytes"),
    *("step_s_min", "step_s_max", "bytes_per_s", "latency_s", "batch_size", "share", "rounds", "steps"),
)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 1 if the model is off by more than it may be.

    Raises:
        UsageError: namespaces cannot be made here, or there are no rows to draw again.
    """
    given = _parse(arguments)
    if given.redraw:
        _draw(given.out, *_read(given.out))
        return 0
    options = {"batch_size": given.batch_size, "share": given.share, "rounds": given.rounds, "steps": given.steps}
    try:
        run = measure(**options)
    except NoNamespaces as error:
        raise cli.UsageError(f"scaling: skipped, since {error}") from error
    print(_report(run, given))
    if not given.no_save:
        _write(given.out, run, options)
        print(f"\n{given.out}")
        _draw(given.out, run.methods, run.link.bytes_per_s, given.batch_size)
    return 0 if all(_error(one) <= _ALLOWED for one in run.methods) else 1


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = cli.Parser(
        prog="python -m bench scaling",
        description="Train on two ranks in network namespaces, joined by a veth whose rate tc limits (as root), and "
        "compare each step with the model of step time; draw the model for up to 1024 devices.",
    )
    parser.add_argument("--batch-size", type=cli.positive, default=64, help="images of a rank; default: 64")
    parser.add_argument(
        "--share", type=_share, default=0.75, help="communication of BIM as a share of its compute; default: 0.75"
    )
    parser.add_argument("--rounds", type=cli.positive, default=5, help="alternations of the methods; default: 5")
    parser.add_argument("--steps", type=cli.positive, default=6, help="of one measurement; default: 6")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"CSV file, with a PNG beside it; default: {RESULTS}")
    parser.add_argument("--redraw", action="store_true", help="measure nothing; draw the rows of the CSV file again")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args(arguments)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < float("inf"):
        raise ArgumentTypeError(f"must be above 0, got {text!r}")
    return share


def _devices() -> dict[str, Device]:
    return {name: Device(link=link) for name, link in _LINKS.items()}


def _error(one: Measured) -> float:
    return abs(one.predicted_s / one.step_s - 1)


def _report(run: Run, given: Namespace) -> str:
    heading = (
        f"cable {run.link.bytes_per_s / 1e6:.1f} MB/s and {1e6 * run.link.latency_s:.0f} µs a message, as measured; "
        f"{given.batch_size} images of a rank; medians of {given.rounds} rounds of {given.steps} steps"
    )
    widths = {"compute": 9, "wire": 8, "step": 8, "wait": 8, "overlapped": 12, "model": 8, "off": 6, "sent": 10}
    columns = f"{'method':42}" + "".join(f"{name:>{width}}" for name, width in widths.items())
    rows = [
        f"{one.method:42}{one.compute_s:8.2f}s{one.wire_s:7.2f}s{one.step_s:7.2f}s{one.wait_s:7.2f}s{one.overlapped:12.0%}"
        f"{one.predicted_s:7.2f}s{_error(one):6.0%}{one.wire_bytes / 1e6:7.1f} MB"
        for one in run.methods
    ]
    return "\n".join([heading, "", columns, *rows])


def _draw(out: Path, methods: Sequence[Measured], bytes_per_s: float, batch_size: int) -> None:
    """Draw the picture beside a CSV file, with a projection from steps of this CPU."""
    title = f"measured: {bytes_per_s / 1e6:.1f} MB/s, batch {batch_size} on each of two CPU cores"
    phases = measured_phases()
    projected = {name: (device, lines(phases, device)) for name, device in _devices().items()}
    picture.draw(out.with_suffix(".png"), methods, title, projected)
    print(out.with_suffix(".png"))


def _read(path: Path) -> tuple[list[Measured], float, int]:
    """Return the methods of a CSV file, the bytes a second of their cable, and their batch size."""
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        methods = [
            Measured(
                method=row["method"],
                compute_s=float(row["compute_s"]),
                wire_s=float(row["wire_s"]),
                step_s=float(row["step_s"]),
                predicted_s=float(row["predicted_s"]),
                gradient_bytes=int(row["gradient_bytes"]),
            )
            for row in rows
        ]
        return methods, float(rows[0]["bytes_per_s"]), int(rows[0]["batch_size"])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise cli.UsageError(f"scaling: {path} has no rows to draw ({type(error).__name__}: {error})") from error


def _write(path: Path, run: Run, options: dict[str, Any]) -> None:
    provenance = results.provenance(torch.device("cpu"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*_FIELDS, *provenance])
        writer.writeheader()
        for one in run.methods:
            row = {name: getattr(one, name) for name in _FIELDS if hasattr(one, name)}
            times = {"step_s_min": min(one.times), "step_s_max": max(one.times)}
            writer.writerow(row | times | vars(run.link) | options | provenance)
