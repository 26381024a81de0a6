"""The command line: what it selects, what it refuses, and one whole run."""

import json
import os
import sys
from pathlib import Path

import commands
import pytest
import torch

from bench import cli, cold, malloc
from bench.__main__ import main
from bench.entry import Case, Entry, Measure
from bench.refcheck import WrongResult
from bench.results import FOLDER

ROOT = Path(__file__).resolve().parents[2]

REFUSED = {
    "gather_token": "no entry is named 'gather_token'; choose from arena, calls, cold_sources, compare, ",
    "step vit": "no recipe is named 'vit'; choose from demo, bim_vit_base, ",
    "compare vit": "no recipe is named 'vit'; choose from demo, bim_vit_base, ",
    "freeze mae_vit_base": "no recipe that freezes layers is named 'mae_vit_base'; choose from vitfreeze_vit_base, ",
    "finetune demo": "no recipe of fine-tuning a ViT is named 'demo'; choose from bim_vit_base, ",
    "gather_tokens --all": "--all belongs to `python -m bench step`",
    "freeze --all": "--all belongs to `python -m bench step`",
    "compare --recompute layers": "--recompute belongs to `python -m bench step`",
    "step --recompute some": "argument --recompute: must be none, layers, stages, or a number of layers of at least 1",
    "freeze --no-eager": "--no-eager belongs to `python -m bench step` and `compare`",
    "freeze --dtype bfloat16": "--dtype belongs to `python -m bench step` and `compare`",
    "step --dtype float64": "argument --dtype: invalid choice: 'float64'",
    "gather_tokens --batch-size 3": "--batch-size belongs to `python -m bench step`, `compare`, `freeze` and `fine",
    "--device tpu": "--device must be cpu, cuda or cuda:N, got 'tpu'",
    "--device cpu:0": "--device must be cpu, cuda or cuda:N, got 'cpu:0'",
    "--device cuda:99": "--device cuda:99: torch sees ",
    "--rounds 0": "argument --rounds: must be a whole number of at least 1, got '0'",
    "--picture --out none.csv": "none.csv: no such file; `python -m bench` writes one",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_one_line_and_exit_code_2(capsys, arguments):
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"bench: {REFUSED[arguments]}")


def test_the_time_of_the_process_is_that_of_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(cli.UsageError, match="--process-time belongs to a CPU, got --device cuda"):
        cli.parse(["step", "--process-time", "--device", "cuda"])


def test_list_names_every_entry(capsys):
    assert main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == sorted(names)
    assert {"gather_tokens", "restore_tokens", "random_keep", "step", "compare", "freeze", "loaders"} <= set(names)


def test_a_quick_look_is_not_kept_unless_asked_for(tmp_path):
    assert cli.parse([]).out == FOLDER / "cpu.csv"
    assert cli.parse(["--quick"]).out is None
    assert cli.parse(["--no-save"]).out is None
    assert cli.parse(["--process-time"]).out is None
    assert not cli.parse(["--process-time"]).cold
    assert cli.parse(["--quick", "--out", str(tmp_path / "x.csv")]).out == tmp_path / "x.csv"


@pytest.mark.parametrize(
    "arguments",
    [
        "gather_tokens --quick",
        "step demo --batch-size 3 --rounds 2",
        "step --all --dtype bfloat16",
        "step demo --recompute layers --no-eager",
        "compare demo --dtype bfloat16 --no-eager",
        "compare mae_vit_test demo --batch-size 3 --rounds 2",
        "compare",
        "freeze vitfreeze_vit_test --batch-size 2",
        "freeze",
        "loaders",
    ],
)
def test_the_cold_pass_selects_the_same_cases(arguments):
    def keys(options):
        return [[case.key for case in e.cases(options.device, options.quick)] for e in options.entries]

    options = cli.parse(arguments.split())
    again = cli.parse(options.arguments(options.entries[0]))
    assert keys(again) == keys(options)
    assert (again.quick, again.rounds) == (options.quick, options.rounds)


def test_the_cold_pass_prints_medians(capsys):
    cold.main(["step", "mae_vit_test", "--batch-size", "2", "--rounds", "1", "--quick"])
    (line,) = capsys.readouterr().out.splitlines()
    key, medians = json.loads(line)
    assert key == "step float32 recipe=mae_vit_test B=2"
    assert {"ours", "eager"} <= set(medians)  # and ViTMAE, where transformers is installed


def failing_entry():
    """Three cases: a wrong result, an exception of two lines, and one that is fine."""

    def measure(case):
        def check(provider, got, expected):
            if case.dims["N"] == 1:
                raise WrongResult(f"{provider}: off")

        if case.dims["N"] == 2:
            raise RuntimeError("no memory\nand more of it")
        return Measure(ours=lambda: torch.ones(3), rivals={}, check=check)

    def cases(device, quick):
        return [Case(device=device, dims={"N": n}, dtype="float32", pass_name="fwd") for n in (1, 2, 3)]

    return Entry(name="failing", summary="fails", cases=cases, measure=measure)


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setattr(cli, "discover", lambda: {"failing": failing_entry()})
    for name, value in malloc.WARM.items():
        monkeypatch.setenv(name, value)


def test_a_case_that_fails_does_not_stop_the_others(failing, tmp_path, capsys):
    out = tmp_path / "cpu.csv"
    assert main(["failing", "--no-cold", "--quick", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "bench: wrong result: failing fwd float32 N=1, ours: off",
        "bench: failing fwd float32 N=2: RuntimeError: no memory",
    ]
    assert "failing  fwd  float32  N=3" in printed.out
    assert len(out.read_text().splitlines()) == 2


def test_a_file_with_other_columns_ends_the_run(failing, tmp_path, capsys):
    out = tmp_path / "cpu.csv"
    out.write_text("op,time\n")
    assert main(["failing", "--no-cold", "--quick", "--out", str(out)]) == 2
    assert "has other columns than this version writes" in capsys.readouterr().err


def test_the_cold_pass_continues_too(failing, capsys):
    assert cold.main(["failing", "--quick"]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)[0] for line in printed.out.splitlines()] == ["fwd float32 N=3"]
    assert "bench: failing fwd float32 N=2, cold: RuntimeError: no memory" in printed.err


def test_what_the_cold_pass_got_through_is_kept(failing, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(malloc, "run_cold", lambda arguments: (1, '["fwd float32 N=3", {"ours": 1.5}]\n'))
    assert main(["failing", "--quick", "--out", str(tmp_path / "cpu.csv")]) == 1
    printed = capsys.readouterr()
    assert "bench: failing: the pass with cold malloc failed, exit code 1" in printed.err
    assert "cold 1.5 s" in printed.out


def test_malloc_is_warm_after_a_restart(monkeypatch):
    restarted = []
    monkeypatch.setattr(os, "execve", lambda *call: restarted.append(call))
    for name in malloc.WARM:
        monkeypatch.delenv(name, raising=False)
    malloc.restart_warm(["--quick"])
    ((_, command, environment),) = restarted
    assert command[1:] == ["-m", "bench", "--quick"]
    assert malloc.WARM.items() <= environment.items()
    for name, value in malloc.WARM.items():
        monkeypatch.setenv(name, value)
    malloc.restart_warm([])
    assert len(restarted) == 1
    malloc.restart_warm([], {"OMP_WAIT_POLICY": "OTHER"})
    assert restarted[1][2]["OMP_WAIT_POLICY"] == "OTHER"


def test_a_whole_run(tmp_path):
    out = tmp_path / "cpu.csv"
    command = [sys.executable, "-m", "bench", "gather_tokens", "--quick", "--out", str(out)]
    done = commands.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"torch {torch.__version__}, commit " in done.stdout.splitlines()[0]
    for name in ("fwd", "fwd+bwd"):
        assert f"gather_tokens  {name}  float32  B=4 N=196 K=49 D=768 P=0" in done.stdout
    assert done.stdout.count("cold") == 8
    assert len(out.read_text().splitlines()) == 1 + 8
