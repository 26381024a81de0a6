"""What a classifier makes of held-out images, against a count by hand."""

import pytest
import torch
from torch import nn

from bimkern.train.reporting.classified import classify


class Ranked(nn.Module):
    """Give class k the logit -k, whatever the image shows."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images):
        return -torch.arange(self.num_classes, dtype=torch.float32).expand(len(images), -1)


def evaluate(num_classes, labels):
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    return classify(Ranked(num_classes), [(images[:2], labels[:2]), (images[2:], labels[2:])], num_classes)


def test_accuracies_and_confusion_are_counts():
    found = evaluate(7, torch.tensor([0, 4, 5, 0, 6]))
    assert found.top1 == pytest.approx(2 / 5)
    assert found.top5 == pytest.approx(3 / 5)
    assert found.confusion[:, 0].tolist() == [2, 0, 0, 0, 1, 1, 1]
    assert found.confusion.sum() == 5
    assert found.record().keys() == {"held_out_loss", "held_out_top1", "held_out_top5"}


def test_five_guesses_of_five_classes_say_nothing():
    found = evaluate(5, torch.tensor([0, 4, 3]))
    assert found.top5 is None
    assert found.record().keys() == {"held_out_loss", "held_out_top1"}
