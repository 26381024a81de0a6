"""How idle OpenMP threads wait: our commands set it in time, a user's setting stands, other programs are left alone."""

import json
import os
import sys
from pathlib import Path

import commands
import pytest

from bimkern import openmp

UNSET = {name: value for name, value in os.environ.items() if name not in (*openmp._SETTINGS, openmp._MARK)}


def run(*arguments, **environment):
    done = commands.run([sys.executable, *arguments], env=UNSET | environment, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("environment", "policy", "spins"), [({}, "PASSIVE", "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", None)]
)
def test_the_runtime_reads_what_a_command_sets_unless_the_user_did(environment, policy, spins):
    output, displayed = run("-m", "bimkern.info", "--json", **environment, OMP_DISPLAY_ENV="VERBOSE")
    assert f"OMP_WAIT_POLICY = '{policy}'" in displayed
    assert ("GOMP_SPINCOUNT = '1000'" in displayed) == (spins == "1000")
    told = json.loads(output)["cpu"]["openmp"]
    assert told.startswith(f"OMP_WAIT_POLICY={policy}, ")
    assert ("set by our commands" in told) == (not environment)


def test_another_setting_of_the_user_is_kept_too():
    output, _ = run("-m", "bimkern.info", "--json", GOMP_SPINCOUNT="77")
    assert json.loads(output)["cpu"]["openmp"] == "GOMP_SPINCOUNT=77, from the environment"


def test_a_process_that_a_command_starts_knows_whose_setting_it_has():
    output, _ = run("-m", "bimkern.info", "--json", OMP_WAIT_POLICY="PASSIVE", BIMKERN_OMP_WAIT_POLICY="PASSIVE")
    assert "set by our commands" in json.loads(output)["cpu"]["openmp"]


def test_an_installed_script_sets_it_too(tmp_path):
    script = tmp_path / "bimkern-info"
    script.write_text("from bimkern import openmp\nprint(openmp.describe())\n")
    output, _ = run(str(script), PYTHONPATH=str(Path(__file__).parent.parent))
    assert "set by our commands" in output


@pytest.mark.parametrize(
    "arguments", [("-m", "bench", "--list"), ("-mbimkern.info",), ("-X", "dev", "-um", "bimkern.info")], ids=" ".join
)
def test_every_command_sets_it_however_it_is_started(arguments):
    _, displayed = run(*arguments, OMP_DISPLAY_ENV="TRUE")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in displayed


@pytest.mark.parametrize("arguments", [(), ("-m", "bimkern.info")])
def test_a_program_that_imports_the_package_keeps_its_own(arguments):
    output, _ = run("-c", "import bimkern.ops; print(bimkern.openmp.describe())", *arguments)
    assert output == "OMP_WAIT_POLICY is not set: idle threads spin\n"
