"""Optimizers by name: with each of them a group skips, counts, saves and resumes alike. apex is a stand-in here."""

import math

import pytest
import torch
from torch import nn

from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.adapters import NAMES, choose
from bimkern.train.optim.group import GroupOptimizer

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("standins")
every_optimizer = pytest.mark.parametrize("name", NAMES)


def optimizer(name, parameters, *, fp16=False, **config):
    made = GroupOptimizer(
        "all", list(parameters.items()), AdamWConfig(**config), device=CPU, fp16=fp16, make=choose(name, CPU)
    )
    made.set_rates(lambda group: 0.1)
    return made


def parameters():
    shapes = {"weight": (3, 4), "bias": (4,)}
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def copies(of):
    return {name: nn.Parameter(p.detach().clone()) for name, p in of.items()}


def train(update, of, scales):
    for scale in scales:
        update.scale(scale * sum(p.sin().sum() for p in of.values())).backward()
        update.apply()


def state(update):
    return {name: tensor.clone() for name, tensor in update.tensors()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_apex_adam_is_adamw():
    ours = parameters()
    theirs = copies(ours)
    train(optimizer("apex_adam", ours), ours, [1.0, 3.0, 0.1])
    train(optimizer("adamw", theirs), theirs, [1.0, 3.0, 0.1])
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_lamb_moves_a_decayed_parameter_by_its_own_norm():
    large, bias = nn.Parameter(torch.full((3, 4), 100.0)), nn.Parameter(torch.full((4,), 100.0))
    update = optimizer("apex_lamb", {"large": large, "bias": bias}, weight_decay=0.0001)
    (large.sum() + bias.sum()).backward()
    update.apply()
    torch.testing.assert_close(large.data, torch.full((3, 4), 100.0 * (1 - 0.1)))
    torch.testing.assert_close(bias.data, torch.full((4,), 100.0 - 0.1))  # no decay, so AdamW's step


@every_optimizer
@pytest.mark.parametrize(("clip", "factor"), [(None, 1.0), (0.5, 0.5 / 40)])
def test_gradients_are_clipped_by_the_config_alone(name, clip, factor):
    p = nn.Parameter(torch.zeros(4, 4))
    update = optimizer(name, {"p": p}, clip=clip)
    (10 * p).sum().backward()
    update.apply()
    torch.testing.assert_close(state(update)["p/exp_avg"], torch.full((4, 4), (1 - 0.9) * 10 * factor))


@every_optimizer
@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
def test_an_update_with_a_gradient_that_is_not_finite_is_skipped_and_counted(name, fp16):
    p = nn.Parameter(torch.ones(2, 2))
    update = optimizer(name, {"p": p}, fp16=fp16, clip=1.0)
    for scale, in_a_row, taken in ((math.nan, 1, 0), (1.0, 0, 1), (math.inf, 1, 1), (math.nan, 2, 1), (1.0, 0, 2)):
        before, moments = p.detach().clone(), state(update)
        update.scale((p * scale).sum()).backward()
        update.apply()
        assert torch.equal(p, before) == (in_a_row > 0)
        assert int(update.skipped_in_a_row) == in_a_row
        assert int(state(update)["p/step"]) == taken
        if in_a_row and moments:
            assert_equal(state(update), moments)
    assert int(update.skipped) == 3


@every_optimizer
@pytest.mark.parametrize("first", [[1.0, 2.0], [math.nan]], ids=["two steps", "all skipped"])
@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
def test_state_survives_a_round_trip_bit_for_bit(name, first, fp16):
    whole = parameters()
    update = optimizer(name, whole, fp16=fp16)
    train(update, whole, first)
    resumed = copies(whole)
    saved, scaler = state(update), update.scaler_state()
    assert {"weight/step", "weight/exp_avg", "bias/exp_avg_sq"} <= saved.keys()
    train(update, whole, [0.5, 4.0])

    other = optimizer(name, resumed, fp16=fp16)
    other.load_tensors(saved | {"other/step": torch.tensor(9.0)})
    other.load_scaler_state(scaler)
    assert_equal(state(other), saved)
    train(other, resumed, [0.5, 4.0])
    assert_equal(resumed, whole)
    assert_equal(state(other), state(update))


@every_optimizer
def test_what_had_no_gradient_yet_has_no_state(name):
    whole = parameters() | {"idle": nn.Parameter(torch.randn(3)), "fixed": nn.Parameter(torch.randn(2))}
    whole["fixed"].requires_grad_(False)
    update = optimizer(name, whole)
    learning = {key: whole[key] for key in ("weight", "bias")}
    train(update, learning, [1.0, 2.0])
    resumed, saved = copies(whole), state(update)
    resumed["fixed"].requires_grad_(False)
    other = optimizer(name, resumed)
    train(other, {key: resumed[key] for key in ("weight", "bias", "idle")}, [3.0])  # as before a roll-back
    with torch.no_grad():
        for key, parameter in whole.items():
            resumed[key].copy_(parameter)
    other.load_tensors(saved)
    assert_equal(state(other), saved)
    for updated, of in ((update, whole), (other, resumed)):
        train(updated, {key: of[key] for key in ("weight", "bias", "idle")}, [0.5, 4.0])
    assert_equal(resumed, whole)
    assert_equal(state(other), state(update))


def test_half_of_a_state_is_refused():
    update = optimizer("adamw", whole := parameters())
    train(update, whole, [1.0])
    saved = state(update)
    del saved["bias/exp_avg"]
    with pytest.raises(KeyError, match="bias/exp_avg"):
        optimizer("adamw", copies(whole)).load_tensors(saved)
