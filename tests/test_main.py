"""`python -m bimkern` lists the commands and runs the one that is named."""

import sys
import tomllib
from pathlib import Path

import commands
import pytest

from bimkern.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent


def test_it_lists_every_command_and_runs_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bimkern"])
    main()
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [f"bimkern.{command}" for command in COMMANDS]
    assert lines[0].endswith("  pre-train an encoder on unlabeled images.")


def test_every_command_has_a_script_and_is_listed():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.keys() == {"bimkern", *(f"bimkern-{command}" for command in COMMANDS)}


def test_it_runs_a_command_with_the_rest_of_the_line():
    done = commands.run([sys.executable, "-m", "bimkern", "info", "--nothing"])
    assert done.returncode == 2
    assert "python -m bimkern.info: error: unrecognized arguments: --nothing" in done.stderr


def test_an_unknown_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bimkern", "plann"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "python -m bimkern: unknown command 'plann'; did you mean plan?\n"
