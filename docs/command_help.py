"""Sphinx extension: the directive `command-help` shows what a command prints for --help."""

import os
import subprocess
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_WIDTH = "100"  # columns


class CommandHelp(SphinxDirective):
    """`{command-help} bimkern.pretrain`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", self.arguments[0], "--help"]
        plain = os.environ | {"COLUMNS": _WIDTH, "NO_COLOR": "1"}
        done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
        return [nodes.literal_block(text=done.stdout, language="text")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
