"""The demo learns from photographs, reconstructs parts of them that it has never seen, and attends by what it sees.

Two fifths of its steps are enough to show that; in make stress, three fifths show that it does so by far.
"""

import json
import os
import re

import pytest
from caches import empty_cache

from bimkern.attention import main as attention
from bimkern.pretrain import main

STEPS, SHARE = ("300", 0.8) if "BIMKERN_STRESS" in os.environ else ("200", 1.0)  # of the baseline's error, at most
UNIFORM = 0.01  # normalized mutual information of queries and keys, below which all queries attend alike


@pytest.mark.long
@pytest.mark.timeout(600)  # on a busy machine
def test_the_demo_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path))
    main(["demo", "--steps", STEPS, "--out", str(tmp_path / "run")])

    losses = [json.loads(line)["loss_per_stage"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for first, *curve in zip(*losses, strict=True):
        assert sum(curve[-5:]) / 5 < 0.45 * first

    printed = capsys.readouterr().out
    found = re.findall(r"after layer (\d)  (\S+); the mean visible target would give (\S+)", printed)
    assert [layer for layer, _, _ in found] == ["1", "2", "3", "4"]
    for _, error, baseline in found:
        assert float(error) < SHARE * float(baseline)

    attention([str(tmp_path / "run"), "--images", "64", "--json"])
    layers = [json.loads(line)["nmi"] for line in capsys.readouterr().out.splitlines()]
    assert len(layers) == 4
    assert min(layers) > UNIFORM
