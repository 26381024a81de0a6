"""`python -m bimkern [COMMAND]`: list the commands, or run one of them."""

import ast
import runpy
import sys
from pathlib import Path

from bimkern.errors import closest
from bimkern.output import printing, say

COMMANDS = ("pretrain", "finetune", "probe", "attention", "plan", "pack", "export", "info")


def main() -> None:
    """List the commands; or run the one that is named, with the rest of the command line."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[1:] = rest
        runpy.run_module(f"bimkern.{name}", run_name="__main__", alter_sys=True)
    elif name in ("-h", "--help"):
        with printing():
            print("\n".join(["Commands; each explains its options with --help:", *map(_summary, COMMANDS)]))
    else:
        say(f"python -m bimkern: unknown command {name!r}; {closest(name, COMMANDS)}", sys.stderr)
        sys.exit(2)


def _summary(name: str) -> str:
    """Return a command with the first line of its docstring, without importing it: that takes seconds."""
    docstring = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text()))
    assert docstring is not None
    usage, _, summary = docstring.splitlines()[0].partition("`: ")
    return f"  {usage.removeprefix('`'):47}{summary}"


if __name__ == "__main__":
    main()
