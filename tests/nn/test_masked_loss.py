import pytest
import torch

from bimkern.nn import MaskedLoss
from bimkern.ops import masked_loss


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("denominator", [None, 3.0])
def test_is_the_op(device, kind, denominator):
    pred, target = torch.randn(2, 4, 6, device=device, requires_grad=True), torch.randn(2, 4, 6, device=device)
    weight = torch.tensor([[0.0, 1.0, 0.5, 1.0]] * 2, device=device)
    got = MaskedLoss(kind)(pred, target, weight, denominator)
    assert torch.equal(got, masked_loss(pred, target, weight, kind, denominator=denominator))
    got.backward()
    assert pred.grad.abs().sum() > 0


def test_trains_inside_of_a_network(device):
    network = torch.nn.Linear(5, 6).to(device)
    inputs, target, weight = torch.randn(2, 4, 5, device=device), torch.zeros(2, 4, 6, device=device), torch.ones(2, 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        loss = MaskedLoss()(network(inputs), target, weight.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_shows_its_kind_and_saves_nothing():
    assert repr(MaskedLoss("l1")) == "MaskedLoss('l1')"
    assert not MaskedLoss().state_dict()


def test_says_what_is_wrong_when_it_is_made():
    with pytest.raises(ValueError, match="MaskedLoss: kind must be one of l2, l1, got 'huber'"):
        MaskedLoss("huber")
