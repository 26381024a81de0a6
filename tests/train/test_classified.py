"""What a classifier makes of held-out images, against a count by hand."""

import pytest
import torch
from drawn import kept_figures
from made_sizes import MadeSizes
from torch import nn

from bimkern.train.reporting import classified
from bimkern.train.reporting.classified import Classified, Errors, classify


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


def test_a_batch_costs_no_second_matrix_of_classes():
    labels = torch.randint(500, (6,))
    with MadeSizes() as sizes:
        found = evaluate(500, labels)
    assert found.confusion[:, 0].tolist() == labels.bincount(minlength=500).tolist()
    assert [size for size in sizes.made if size >= 500 * 500] == [500 * 500]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    return kept_figures(monkeypatch, classified)


def errors_of(channels):
    one = torch.zeros(1, dtype=torch.int64)
    return Errors(torch.randint(256, (1, channels, 4, 4), dtype=torch.uint8), one, one + 1, torch.tensor([0.9]))


def draw_confusion(path, confusion, classes):
    classified.draw_confusion(path, Classified(1.0, 0.5, None, confusion, errors_of(3)), classes, "a run")


@pytest.mark.filterwarnings("error")
def test_a_class_without_an_image_is_none_of_whose_images_nothing_is_known(tmp_path, figures):
    draw_confusion(tmp_path / "some.png", torch.tensor([[3, 1, 0], [0, 0, 0], [0, 2, 0]]), "abc")
    draw_confusion(tmp_path / "all.png", torch.tensor([[3, 1, 0], [1, 0, 0], [0, 2, 0]]), "abc")
    (axis, bar), (whole, _) = (figure.axes for figure in figures)
    shown = axis.images[0].get_array()
    assert shown[0].tolist() == [75, 25, 0]
    assert shown.mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert [text.get_text() for text in axis.texts] == ["75", "25", "100"]
    assert bar.get_ylabel() == "% of the true class"
    assert (axis.get_ylabel(), whole.get_ylabel()) == ("true; gray: no image", "true")


def test_very_many_classes_are_drawn_in_groups(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(classified, "_GROUPS", 40)
    confusion = torch.randint(9, (83, 83))
    draw_confusion(tmp_path / "confusion.png", confusion, [f"{number}" for number in range(83)])
    (axis, _) = figures[0].axes
    padded = torch.nn.functional.pad(confusion, (0, 1, 0, 1))
    counts = padded.view(28, 3, 28, 3).sum(dim=(1, 3)).double()
    torch.testing.assert_close(torch.tensor(axis.images[0].get_array()), 100 * counts / counts.sum(1, keepdim=True))
    assert axis.get_xlabel() == "predicted, in groups of 3 classes"
    assert axis.get_ylabel() == "true, in groups of 3 classes"


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        (1, ""),
        (2, "; of 2 channels, the first"),
        (3, ""),
        (5, "; of 5 channels, the first three in red, green and blue"),
    ],
)
def test_errors_say_which_channels_they_show(tmp_path, figures, channels, said):
    classified.draw_errors(tmp_path / "errors.png", errors_of(channels), "ab", "a run")
    assert figures[0].get_suptitle() == f"a run{said}"


RECORD = {"epoch": 0.5, "loss": 2.0, "lr": 0.1}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("found", "losses", "accuracies"),
    [
        ([], ["training, as mixed and smoothed"], None),
        (["held_out_loss", "held_out_top1"], ["training, as mixed and smoothed", "held out"], ["top-1"]),
        (
            ["held_out_loss", "held_out_top1", "held_out_top5"],
            ["training, as mixed and smoothed", "held out"],
            ["top-1", "top-5"],
        ),
    ],
)
def test_curves_name_those_that_there_are(tmp_path, figures, found, losses, accuracies):
    records = [RECORD, RECORD | {"epoch": 1.0} | dict.fromkeys(found, 0.5)]
    classified.draw_training(tmp_path / "curves.png", records)
    legends = [axis.get_legend() for axis in figures[0].axes]
    named = [None if legend is None else [text.get_text() for text in legend.get_texts()] for legend in legends]
    assert named == [losses, accuracies, None]
