"""Gradients are summed in buckets, in one order on all ranks, as backward comes to them."""

import pytest
import torch
from rank_processes import RankProcesses
from torch import nn

from bimkern.distributed.connect import connected
from bimkern.distributed.transfers import Traffic
from bimkern.train.optim import gradients
from bimkern.train.optim.gradients import BucketedReducer


class Recorded:
    """Two ranks of the same gradients; notes which tensors are summed when."""

    rank, size = 0, 2

    def __init__(self):
        self.sent, self.clock = [], 0.0

    def all_reduce_max(self, values):
        return list(values)

    def begin_all_reduce(self, tensor):
        self.sent.append(len(tensor))
        tensor.mul_(2)
        return self

    def wait(self):
        pass

    def traffic(self):
        self.clock += 1.0  # each is on its way for two seconds, and the next begins in the middle
        return Traffic(((self.clock, self.clock + 2.0),), wait=1.0)


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 4 * 12)  # 12 numbers


@pytest.fixture
def net(small_buckets):
    """Return three layers of 12 parameters, of which the second has no gradient, and their sum over ranks."""
    layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    ranks = Recorded()
    return layers, ranks, BucketedReducer(list(layers.parameters()), ranks)


def backward(layers):
    layers[2](layers[0](torch.ones(1, 3))).sum().backward()


def step(layers, summed):
    """Run a step; return the gradients, and how many buckets were sent before backward ended."""
    summed.ahead()
    backward(layers)
    expected = {name: 2 * p.grad for name, p in layers.named_parameters() if p.grad is not None}
    assert summed.begin()
    assert all(p.grad is None or summed._buckets is None for p in layers.parameters())
    return expected


def test_the_first_step_sums_at_its_end_and_later_ones_as_gradients_come(net):
    layers, ranks, summed = net
    expected = step(layers, summed)
    assert not ranks.sent
    summed.finish()
    assert ranks.sent == [12, 12]  # the third layer, then the first
    for name, parameter in layers.named_parameters():
        assert (parameter.grad is None) == (name not in expected)
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0)
            parameter.grad = None
    ranks.sent.clear()
    sent_at = []
    layers[0].weight.register_post_accumulate_grad_hook(lambda _: sent_at.append(len(ranks.sent)))
    summed.ahead()
    backward(layers)
    assert sent_at[0] >= 1  # that of the third layer is on its way before backward comes to the first
    assert summed.begin()
    summed.finish()
    assert ranks.sent == [12, 12]
    spent = summed.traffic()
    assert (spent.total, spent.wait) == (5.0, 4.0)  # of four
    assert summed.traffic() == Traffic()


def test_other_gradients_are_expected_after_renewal(net):
    layers, ranks, summed = net
    step(layers, summed)
    summed.finish()
    summed.renew()
    for parameter in layers.parameters():
        parameter.grad = None
    ranks.sent.clear()
    layers[1](torch.ones(1, 3)).sum().backward()
    summed.begin()
    summed.finish()
    assert ranks.sent == [12]
    assert layers[0].weight.grad is None
    assert layers[1].weight.grad is not None


def test_a_rank_that_gives_up_sends_as_many(net):
    layers, ranks, summed = net
    summed.give_up()
    assert not ranks.sent  # the first step sums at its end, which no rank comes to
    step(layers, summed)
    summed.finish()
    ranks.sent.clear()
    summed.ahead()
    layers[2](torch.ones(1, 3)).sum().backward()
    summed.give_up()
    assert ranks.sent == [12, 12]


def lacking_one_gradient():
    """Sum gradients of which this rank may lack one."""
    with connected("cpu", 60) as ranks:
        layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        summed = BucketedReducer(list(layers.parameters()), ranks)
        layers[ranks.rank](torch.full((1, 3), 2.0)).sum().backward()
        summed.begin()
        summed.finish()
        return [layer.weight.grad.tolist() for layer in layers]


def test_a_gradient_that_a_rank_lacks_counts_as_zero(tmp_path):
    first, second = RankProcesses(lacking_one_gradient, 2, tmp_path).results()
    assert first == second == [[[2.0] * 3] * 3] * 2


def test_transfers_that_overlap_count_once():
    queued = Traffic(((0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (0.0, 4.0)), wait=4.0)
    assert queued.total == 4.0
    apart = Traffic(((7.0, 8.0), (5.0, 6.5)), wait=0.5)
    assert (queued + apart).total == 6.5
    assert (queued + apart).wait == 4.5
    assert Traffic().total == 0.0
