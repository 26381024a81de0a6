"""`python -m bimkern.dropin --list`: show the host programs that are known, and the versions installed and tested."""

import argparse
import importlib.metadata

from bimkern.dropin.hosts import HOSTS
from bimkern.dropin.structure import Host
from bimkern.output import printing

_COLUMNS = ("host", "package", "installed", "tested", "replaced")


def listing() -> str:
    """Lay out a line for every host."""
    lines = [_COLUMNS, *map(_line, HOSTS.values())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _line(host: Host) -> tuple[str, ...]:
    return (
        host.name,
        host.package or "-",
        _installed(host.package) if host.package else "-",
        ", ".join(host.tested) or "own model",
        "; ".join(dict.fromkeys(part.what for part in host.parts)),
    )


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "no"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bimkern.dropin", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "--list", action="store_true", required=True, help="show the table; nothing is imported of them"
    )
    parser.parse_args()
    with printing():
        print(listing())


if __name__ == "__main__":
    main()
