"""Schedules as functions of progress."""

import math
import re

import pytest

from bimkern.mim.schedule import Cosine, MultiStep


def test_cosine_warms_up_linearly_and_decays_to_its_floor():
    schedule = Cosine(warmup=0.1, final=0.2)
    assert schedule.factor(0.0) == 0
    assert schedule.factor(0.05) == pytest.approx(0.5)
    assert schedule.factor(0.1) == pytest.approx(1.0)
    assert schedule.factor(0.55) == pytest.approx(0.6)  # half way down
    assert schedule.factor(1.0) == pytest.approx(0.2)


def test_cosine_without_warmup_starts_at_the_peak():
    assert Cosine(warmup=0).factor(0.0) == 1


def test_cosine_gives_maes_rates():
    """MAE's rule at epoch 200 of 800 with 40 of warm-up, as its program computes it."""
    expected = 0.5 * (1 + math.cos(math.pi * (200 - 40) / (800 - 40)))
    assert Cosine(warmup=40 / 800).factor(200 / 800) == pytest.approx(expected)


def test_steps_divide_the_peak_at_every_milestone():
    schedule = MultiStep(warmup=0.1, milestones=(0.5, 0.75), gamma=0.1)
    found = [schedule.factor(progress) for progress in (0.0, 0.05, 0.1, 0.4999, 0.5, 0.7499, 0.75, 1.0)]
    assert found == pytest.approx([0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert schedule.frozen_groups(1.0, 12) == 0


def test_steps_without_warmup_or_milestones_stay_at_the_peak():
    assert [MultiStep(warmup=0, milestones=()).factor(progress) for progress in (0.0, 1.0)] == [1, 1]


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"Step: warmup must be in \[0, 1\), a share of the run, got 10"):
        MultiStep(warmup=10, milestones=())
    for milestones in ((0.05, 0.5), (0.5, 0.5), (0.5, 1.0)):
        wrong = re.escape(f"Step: milestones must rise between warmup=0.1 and 1, got {milestones}")
        with pytest.raises(ValueError, match=wrong):
            MultiStep(warmup=0.1, milestones=milestones)
    with pytest.raises(ValueError, match=r"Step: gamma must be in \(0, 1\), got 1"):
        MultiStep(warmup=0.1, milestones=(0.5,), gamma=1)
    with pytest.raises(ValueError, match=r"Cosine: warmup must be in \[0, 1\), a share of the run, got 40"):
        Cosine(warmup=40)
