"""`python -m bimkern.dropin --list` and the versions it names."""

import importlib.metadata
import sys
from pathlib import Path

import commands
import pytest

from bimkern.dropin import __main__ as command
from bimkern.dropin.hosts import HOSTS

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def test_a_line_for_every_host(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bimkern.dropin", "--list"])
    command.main()
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["host", "package", "installed", "tested", "replaced"]
    assert [line.partition("  ")[0] for line in lines] == list(HOSTS)


def test_a_package_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    (line,) = [line for line in command.listing().splitlines() if line.startswith("timm")]
    assert line.split()[2:4] == ["timm", "no"]


def test_without_list_it_says_what_there_is():
    result = commands.run([sys.executable, "-m", "bimkern.dropin"])
    assert result.returncode == 2
    assert "--list" in result.stderr


@pytest.mark.parametrize("package", sorted({host.package for host in HOSTS.values() if host.package}))
def test_the_version_that_ci_installs_is_named_as_tested(package):
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    assert all(pins[package] in host.tested for host in HOSTS.values() if host.package == package)
