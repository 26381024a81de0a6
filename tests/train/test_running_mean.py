"""A mean that is read once."""

import math

import pytest
import torch

from bimkern.train.reporting.running_mean import RunningMean


def test_a_mean_is_taken_over_what_was_added_since_the_last_one():
    mean = RunningMean()
    assert math.isnan(mean.take())
    for value in (1.0, 2.0, 6.0):
        mean.add(torch.tensor(value))
    assert mean.take() == pytest.approx(3.0)
    mean.add(torch.tensor(7.0))
    assert mean.take() == 7.0
    mean.add(torch.tensor(1.0))
    mean.clear()
    assert math.isnan(mean.take())


def test_ten_thousand_steps_neither_add_memory_nor_lose_digits():
    mean = RunningMean()
    for _ in range(10_000):
        mean.add(torch.tensor(0.1))
    assert mean.take() == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)
    assert set(vars(mean)) == {"_sum", "_count"}
