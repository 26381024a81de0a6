"""The way of tokens between two ranks: a bounded queue, and shapes that travel once."""

import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from bimkern.data.batches import Batch
from bimkern.distributed.transfers import Traffic
from bimkern.train.pipeline import link as links
from bimkern.train.pipeline.agreement import ImagesDiffer, StageAgreement, StageFailed
from bimkern.train.pipeline.link import QUEUE, Link
from bimkern.train.signals import StopSignals

CPU = torch.device("cpu")


class Wire:
    """Connections on which everything that is sent waits until it is asked for."""

    def __init__(self, ranks, *, own):
        self.sent, self.waited = [], 0
        ranks.wires.append(self)

    def begin_send(self, tensor, rank):
        self.sent.append(tensor)
        return SimpleNamespace(wait=self._wait, traffic=lambda: Traffic(wait=0.5))

    def send(self, tensor, rank):
        self.sent.append(tensor)

    def receive(self, tensor, rank):
        return tensor.copy_(self.sent.pop(0))

    def begin_receive(self, tensor, rank):
        return SimpleNamespace(wait=lambda: self.receive(tensor, rank), traffic=Traffic)

    def _wait(self):
        self.waited += 1


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(links, "Lines", Wire)
    return SimpleNamespace(rank=1, size=2, wires=[])


def test_a_rank_waits_when_the_queue_is_full(ranks):
    link = Link(ranks, CPU)
    tokens, _ = ranks.wires
    for i in range(QUEUE + 2):
        assert tokens.waited == max(0, i - QUEUE)
        link.send("key", torch.full((2, 3), float(i)))
    assert link.waits() == [0.0, 1.0]
    assert link.waits() == [0.0, 0.0]


def test_what_is_sent_may_be_overwritten(ranks):
    link, sent = Link(ranks, CPU), torch.ones(2, 3)
    link.send("key", sent)
    sent.zero_()
    assert ranks.wires[0].sent[0].eq(1).all()


def test_shapes_travel_once_and_tokens_arrive_in_order(ranks):
    link = Link(ranks, CPU)
    tokens, shapes = ranks.wires
    sent = [torch.randn(size, 5, 4).to(dtype) for size, dtype in ((3, torch.float32), (1, torch.bfloat16))] * 2
    for i, one in enumerate(sent):
        link.send(i % 2, one)
    assert len(shapes.sent) == 2
    link.expect([0, 1, 0, 1])
    for one in sent:
        received = link.receive()
        assert received.dtype == one.dtype
        assert received.equal(one)
    assert not tokens.sent


@pytest.fixture
def agreement():
    reduced = []

    def begin_all_reduce_max(values):
        reduced.append(values)
        return lambda: answers.pop(0) if answers else values

    answers = []
    met = {"patient": nullcontext, "all_reduce_max": list}
    ranks = SimpleNamespace(rank=1, size=3, begin_all_reduce_max=begin_all_reduce_max, **met)
    return SimpleNamespace(of=StageAgreement(ranks, None, None), reduced=reduced, answers=answers)


def test_a_signal_counts_as_many_steps_later_as_there_are_ranks_behind_the_first(agreement):
    signals = StopSignals()
    agreement.answers += [[15, 0, 0]]
    for _ in range(2):
        agreement.of.on_step(signals)
        assert signals.agreed is None
    agreement.of.on_step(signals)
    assert signals.agreed == 15


def test_the_end_waits_for_all_that_is_not_yet_agreed(agreement):
    signals = StopSignals()
    agreement.of.on_step(signals)
    agreement.answers += [[0, 0, 0], [15, 0, 0]]
    agreement.of.on_end(signals)
    assert signals.agreed == 15


def test_ranks_that_show_different_images_end_the_run(agreement):
    signals = StopSignals()
    batch = [Batch(torch.empty(0), torch.empty(0), torch.tensor([3, 5]))]
    agreement.of.on_loading(signals, batch, None, 0)
    agreement.of.on_step(signals)
    other = agreement.reduced[0][1] - 1
    agreement.answers += [[0, other + 1, -other]]
    with pytest.raises(ImagesDiffer, match="the ranks have read different images; make sure that --data is the same"):
        agreement.of.on_end(signals)


def test_a_rank_that_cannot_load_a_step_says_so(agreement):
    with pytest.raises(StageFailed, match=r"no image is left. The same command resumes the run from its last checkp"):
        agreement.of.on_loading(StopSignals(), [], StageFailed("no image is left"), 4)


def test_a_signal_while_the_loader_hangs_ends_the_run_with_its_exit_code(agreement):
    signals = StopSignals()
    signals.received = signal.SIGTERM
    with pytest.raises(StageFailed, match="rank 1: stopped by SIGTERM while its loader hung, after step 4") as failed:
        agreement.of.on_loading(signals, [], None, 4)
    assert failed.value.exit_code == 143
