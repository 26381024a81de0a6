"""Statistics of batch norms outlive a step that is not finite."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from bimkern.models.cmt import CMT
from bimkern.recipes import RECIPES
from bimkern.train.optim.batch_norms import FiniteStatistics
from bimkern.train.run import run

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_what_is_not_finite_is_dropped_and_the_rest_kept():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    statistics = FiniteStatistics(model)
    with statistics.kept():
        model(torch.randn(8, 3))
    before = model[0].running_mean.clone()
    x = torch.randn(8, 3)
    x[5, 1] = math.inf
    with statistics.kept():
        model(x)
    assert torch.equal(model[0].running_mean[1], before[1])
    assert not torch.isclose(model[0].running_mean, before)[[0, 2]].any()
    assert model[0].running_var.isfinite().all()


def test_a_network_without_batch_norms_has_none():
    with FiniteStatistics(nn.Linear(2, 2)).kept():
        pass


def test_a_batch_that_overflows_leaves_a_network_that_can_be_evaluated(tmp_path, monkeypatch):
    config = RECIPES["fastmim_cmt_test"].config
    plain, calls = CMT.embed_painted, iter(range(10**6))

    def overflowing(self, *args):
        tokens = plain(self, *args)
        return tokens if isinstance(tokens, FakeTensor) or next(calls) != 1 else tokens * math.inf

    monkeypatch.setattr(CMT, "embed_painted", overflowing)
    done = run(replace(config, run=replace(config.run, out=tmp_path / "run", steps=4, log_every=1, workers=0)))
    assert done.history[-1]["skipped_updates"] == [1]
    assert all(tensor.isfinite().all() for tensor in done.model.state_dict().values())
    assert math.isfinite(done.held_out[0].loss)
