"""Schedules as functions of progress."""

import math
import re
from dataclasses import replace

import pytest
from own_pieces import Linear

from bimkern.mim.schedule import Cosine, FreezeOut, MultiStep, resolve


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


SCHEDULES = (Cosine(warmup_epochs=40), MultiStep(warmup_epochs=40, milestones=(0.875,)), FreezeOut(warmup_epochs=40))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_a_warmup_in_epochs_keeps_its_length(schedule):
    for epochs in (80, 800, 1600):
        in_shares = replace(schedule, warmup=40 / epochs, warmup_epochs=None)
        assert resolve(schedule, epochs, 1.0) == in_shares
        ramp = [in_shares.factor(epoch / epochs, 12, 12) for epoch in (10, 20, 40)]
        assert ramp == pytest.approx([0.25, 0.5, 1])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("epochs", [0.01, 30, 40])
def test_a_run_that_is_no_longer_than_its_warmup_rises_to_its_end(schedule, epochs):
    short = resolve(schedule, epochs, 1.0)
    assert [short.factor(progress, 12, 12) for progress in (0.25, 0.5, 0.999)] == pytest.approx([0.25, 0.5, 0.999])
    assert short.frozen_groups(0.999, 12) == 0
    if not isinstance(schedule, MultiStep):
        assert short.factor(1.0, 12, 12) == 1


def test_a_milestone_within_the_warmup_counts_at_its_end():
    short = resolve(MultiStep(warmup_epochs=10, milestones=(0.5,), gamma=0.1), 16, 1.0)
    assert [short.factor(epoch / 16) for epoch in (5, 9, 10, 16)] == pytest.approx([0.5, 0.9, 0.1, 0.1])


@pytest.mark.parametrize("peak", [1.6e-3, 2.4e-3, 5e-7])
def test_a_final_learning_rate_does_not_follow_the_peak(peak):
    cosine = resolve(Cosine(warmup=0.1, final_lr=1e-6), 100, peak)
    assert peak * cosine.factor(1.0) == pytest.approx(1e-6)
    assert peak * cosine.factor(0.55) == pytest.approx((peak + 1e-6) / 2)
    freezing = resolve(FreezeOut(warmup=0.1, final_lr=1e-6), 100, peak)
    assert peak * freezing.factor(1.0, 12, 12, head=True) == pytest.approx(1e-6)
    assert freezing.factor(1.0, 12, 12) == 0


def test_what_depends_on_the_run_has_no_value_without_it():
    for schedule in SCHEDULES:
        with pytest.raises(ValueError, match=r"\w: warmup_epochs has no meaning without a run; resolve\(\) it first"):
            schedule.factor(0.5)
    with pytest.raises(ValueError, match="FreezeOut: warmup_epochs has no meaning without a run"):
        FreezeOut(warmup_epochs=40).frozen_groups(0.5, 12)
    with pytest.raises(ValueError, match=r"Cosine: final_lr has no meaning without a run; resolve\(\) it first"):
        Cosine(final_lr=1e-6).factor(0.5)


def test_a_schedule_in_shares_is_as_it_is_in_every_run():
    for schedule in (Cosine(warmup=0.1, final=0.2), MultiStep(milestones=(0.5,)), Linear()):
        assert resolve(schedule, 7, 1e-3) is schedule


def test_says_what_is_wrong():
    wrong = r"Step: warmup must be in \[0, 1\], a share of the run, got 10; epochs are warmup_epochs"
    with pytest.raises(ValueError, match=wrong):
        MultiStep(warmup=10, milestones=())
    for milestones in ((0.0, 0.5), (0.5, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match=re.escape(f"Step: milestones must rise within (0, 1), got {milestones}")):
            MultiStep(warmup=0.1, milestones=milestones)
    for name, given in (
        ("warmup_epochs", -1.0),
        ("warmup_epochs", math.inf),
    ):
        with pytest.raises(ValueError, match=f"Cosine: {name} must be at least 0 and finite, got {given}"):
            Cosine(**{name: given})
    for given in (-1.0, math.nan, 1e39):
        with pytest.raises(ValueError, match=re.escape(f"must be at least 0 and at most 3.4e+38, got {given}")):
            Cosine(final_lr=given)
    with pytest.raises(ValueError, match=r"Cosine: give warmup or warmup_epochs, got 0\.1 and 40"):
        Cosine(warmup=0.1, warmup_epochs=40)
    with pytest.raises(ValueError, match=r"FreezeOut: give final or final_lr, got 0\.1 and 1e-06"):
        FreezeOut(final=0.1, final_lr=1e-6)
    with pytest.raises(ValueError, match=r"Step: gamma must be in \(0, 1\), got 1"):
        MultiStep(warmup=0.1, milestones=(0.5,), gamma=1)
    with pytest.raises(ValueError, match=r"Cosine: warmup must be in \[0, 1\], a share of the run, got 40; epochs are"):
        Cosine(warmup=40)
