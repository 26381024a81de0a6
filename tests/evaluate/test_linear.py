"""The linear probe and its optimizer."""

import math

import pytest
import torch

from bimkern.evaluate.errors import EvaluationError, ProbeDiverged
from bimkern.evaluate.lars import LARS
from bimkern.evaluate.linear import LinearProbe, build_probe


def test_lars_equals_a_hand_computation():
    """Two steps by hand: lr 2, momentum 0.5, trust 0.1, decay 0.5 of the matrix alone."""
    matrix, vector = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    optimizer = LARS([matrix, vector], lr=2.0, momentum=0.5, trust=0.1, weight_decay=0.5)
    matrix.grad, vector.grad = torch.tensor([[1.5, -2.0]]), torch.tensor([0.25])
    optimizer.step()
    # g = [1.5, -2] + 0.5 [3, 4] = [3, 0]; |p| / |g| = 5 / 3; step = 0.1 * 5 / 3 * [3, 0] = [0.5, 0]
    torch.testing.assert_close(matrix.detach(), torch.tensor([[2.0, 4.0]]))
    torch.testing.assert_close(vector.detach(), torch.tensor([0.5]))

    matrix.grad, vector.grad = torch.tensor([[-1.0, 3.0]]), torch.tensor([0.0])
    optimizer.step()
    # g = [0, 5]; |p| = sqrt(20); step = 0.1 sqrt(20) [0, 1], behind the momentum 0.5 [0.5, 0] = [0.25, 0]
    torch.testing.assert_close(matrix.detach(), torch.tensor([[2.0 - 0.5, 4.0 - 0.2 * 20**0.5]]))
    torch.testing.assert_close(vector.detach(), torch.tensor([0.5 - 2 * 0.5 * 0.25]))


@pytest.mark.parametrize(("start", "gradient"), [(0.0, 0.25), (1.0, 0.0)])
def test_a_matrix_without_a_norm_is_not_scaled(start, gradient):
    matrix = torch.full((1, 1), start, requires_grad=True)
    matrix.grad = torch.full((1, 1), gradient)
    LARS([matrix], lr=2.0).step()
    assert matrix.item() == start - 2 * gradient


def test_a_closure_gives_the_loss():
    weight = torch.ones(2, 2, requires_grad=True)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert LARS([weight], lr=1.0).step(closure) == 4
    assert not torch.equal(weight, torch.ones(2, 2))


def test_the_numbers_are_those_of_the_paper():
    probe = LinearProbe()
    assert probe.peak_lr == 6.4
    assert probe.num_steps(1_281_167) == 90 * (1_281_167 // 16384)
    assert probe.num_steps(100) == 1000
    norm, linear = build_probe(1000, 100, torch.Generator().manual_seed(0))
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not linear.bias.any()


def test_it_separates_classes_at_any_scale_and_in_batches():
    labels = torch.arange(120) % 3
    train = 1e3 * (torch.eye(3)[labels].repeat(1, 4) + 0.1 * torch.randn(120, 12)) + 1e4
    for batch_size in (16384, 50):
        probe = LinearProbe(batch_size=batch_size, base_lr=6.4 * 256 / batch_size, min_steps=200)
        first, again = (probe.accuracy(train[:60], labels[:60], train[60:], labels[60:], seed=3) for _ in range(2))
        assert first == again == 1
        assert probe.accuracy(train[:60], (labels[:60] + 1) % 3, train[60:], labels[60:]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_lr": 0.0}, r"--base-lr must be above 0 and finite, got 0\.0"),
        ({"base_lr": 1e38}, r"--base-lr 1e\+38 for batches of 16384: the peak, .*, must be from 1.2e-38 to 3.4e\+38"),
        ({"base_lr": 1e-323, "batch_size": 1}, r"must be from 1.2e-38 to 3.4e\+38, got 0.0e\+00"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"epochs": 5}, r"warmup_epochs must be in \[0, epochs=5\), got 10"),
    ],
)
def test_says_what_is_wrong(options, message):
    with pytest.raises(EvaluationError, match=message):
        LinearProbe(**options)


def test_a_probe_that_diverges_is_no_result():
    labels = torch.arange(12) % 2
    features = torch.randn(6, 4).repeat_interleave(2, 0)  # of either label: no step is the last
    probe = LinearProbe(base_lr=1e36, min_steps=20)
    with pytest.raises(ProbeDiverged, match=r"the linear probe diverges at --base-lr 1e\+36; choose a smaller one"):
        probe.accuracy(features, labels, features, labels)
    features[3, 1] = math.inf
    with pytest.raises(EvaluationError, match="the features are not finite, and cannot be evaluated; train "):
        LinearProbe(min_steps=2).accuracy(features, labels, features, labels)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_to_test_on_that_are_not_finite_are_no_result(value):
    labels = torch.arange(12) % 2
    features = torch.randn(12, 4)
    wrong = features.clone()
    wrong[3, 1] = value
    probe = LinearProbe(min_steps=2)
    for train, test in ((features, wrong), (wrong, features)):
        with pytest.raises(EvaluationError, match="the features are not finite, and cannot be evaluated"):
            probe.accuracy(train, labels, test, labels)
