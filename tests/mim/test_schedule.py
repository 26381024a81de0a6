"""Schedules as functions of progress."""

import math

import pytest

from bimkern.mim.schedule import Cosine


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


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"Cosine: warmup must be in \[0, 1\), a share of the run, got 40"):
        Cosine(warmup=40)
