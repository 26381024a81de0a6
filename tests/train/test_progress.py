"""What a run says while it goes."""

import re

import pytest

from bimkern.train.reporting import progress
from bimkern.train.reporting.progress import Reporter

RECORD = {
    "epoch": 0.5,
    "image_size": 64,
    "loss_per_stage": [0.5, None],
    "lr": 1e-3,
    "images_per_s": 10.0,
    "data_wait": 0.0,
    "peak_bytes": 2**30,
    "planned_bytes": None,
}


@pytest.fixture
def report(monkeypatch, capsys):
    """Report steps that end at given seconds, and return the lines."""

    def lines(ends, *, done, total):
        clock = iter(ends.values())
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        reporter = Reporter(done=done, total=total)
        for step in ends:
            reporter.step(step, RECORD)
        return capsys.readouterr().out.splitlines()

    return lines


def test_the_first_step_says_nothing_of_the_time_left_since_it_is_slower_than_others(report):
    first, second = report({41: 100.0, 42: 106.0}, done=40, total=50)
    assert first.endswith("peak 1.00 GiB")
    assert second.endswith("peak 1.00 GiB  48 s left")


def test_every_logged_step_has_a_line(report):
    ends = {step: 100.0 + step / 1000 for step in range(1, 21)}
    steps = [int(re.match(r"step (\d+)/20 ", line)[1]) for line in report(ends, done=0, total=20)]
    assert steps == list(range(1, 21))


def test_a_frozen_stage_has_no_loss(report):
    (line,) = report({1: 1.0}, done=0, total=9)
    assert "epoch 0.50  64 px  loss 0.5000 frozen  lr 1.00e-03  10 images/s  data wait 0%" in line
