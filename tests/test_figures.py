"""Names of runs and classes in pictures: any that a folder can have."""

import os
from itertools import pairwise

import pytest
import torch
from drawn import kept_figures
from matplotlib.colors import to_hex

from bimkern.evaluate import attention_report, report
from bimkern.evaluate.attention_analysis import LayerAttention
from bimkern.evaluate.depths import DepthResult
from bimkern.figures import legend_name, new_figure, plain, short_names, shortened
from bimkern.train.reporting import classified
from bimkern.train.reporting.classified import Classified, Errors, draw_confusion, draw_errors

FORMULA = r"$_$ 5\$ {%"  # as one, matplotlib would refuse it
NO_TEXT = os.fsdecode(b"caf\xe9")  # of a folder whose name is not in UTF-8


def test_a_name_is_shown_as_it_is():
    figure = new_figure(2, 2)
    text = figure.text(0, 0, plain(FORMULA))
    assert text._preprocess_math(text.get_text()) == (FORMULA, False)


@pytest.mark.parametrize("run", [FORMULA, NO_TEXT, "_own"])
@pytest.mark.filterwarnings("error")
def test_a_legend_names_every_run(tmp_path, run):
    axes = new_figure(2, 2).subplots()
    axes.plot([0], [0], label=legend_name(run))
    assert len(axes.legend().get_texts()) == 1
    depth = DepthResult(depth=1, parameters=9, latency_ms=1.0, knn={1: 0.5}, linear=0.5, chance=0.5)
    report.draw({run: [depth]}, tmp_path / "probe.png")
    by_head = dict.fromkeys(("distance_px", "entropy_nats", "nmi", "kl_heads_nats"), (1.0, 2.0))
    layers = {
        name: LayerAttention(layer=1, **by_head, kl_layers_nats=(0.0,), cka={run: (1.0,), "b": (1.0,)})
        for name in (run, "b")
    }
    attention_report.draw({name: [layer] for name, layer in layers.items()}, tmp_path / "attention.png")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 10, 11, 30])
def test_no_two_runs_have_one_color_and_many_leave_room(tmp_path, monkeypatch, count):
    figures = kept_figures(monkeypatch, report)
    depth = DepthResult(depth=1, parameters=9, latency_ms=1.0, knn={1: 0.5}, linear=0.5, chance=0.5)
    report.draw({f"{number}": [depth] for number in range(count)}, tmp_path / "probe.png")
    lines = [line for line in figures[0].axes[0].get_lines() if line.get_label().endswith("linear")]
    assert len({to_hex(line.get_color()) for line in lines}) == len(lines) == count


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        (["runs/mine"], ["runs/mine"]),
        (["/a/b/c1", "/a/b/c2"], ["c1", "c2"]),
        (["/a/b/c1/d", "/a/b/c2/d", "/a/e"], ["b/c1/d", "b/c2/d", "e"]),
        (["runs/a", "runs/a/checkpoints/step-1"], ["a", "a/checkpoints/step-1"]),
        (["/a", "a"], ["/a", "a"]),
        ([".", "a/b", "c/b"], [".", "a/b", "c/b"]),
        (["x" * 20 + "y" * 20], ["x" * 16 + "…" + "y" * 15]),
        (
            ["x" * 20 + "1" + "y" * 20, "x" * 20 + "2" + "y" * 20],
            ["x" * 20 + "1" + "y" * 20, "x" * 20 + "2" + "y" * 20],
        ),
    ],
)
def test_runs_are_named_from_where_they_differ(runs, shown):
    assert short_names(runs) == dict(zip(runs, shown, strict=True))


@pytest.mark.parametrize(
    ("name", "length", "shown"),
    [("", 3, ""), ("abc", 3, "abc"), ("abcd", 3, "a…d"), ("abcdefgh", 6, "abc…gh"), ("abcdefgh", 7, "abc…fgh")],
)
def test_a_long_name_keeps_both_ends(name, length, shown):
    assert shortened(name, length) == shown


@pytest.mark.filterwarnings("error")
def test_long_names_of_classes_leave_room(tmp_path, monkeypatch):
    """Beside a small matrix, and above images that stand beside each other."""
    figures = kept_figures(monkeypatch, classified)
    names = [f"n0212304{number} tabby, tabby cat, of the house and garden, " * 4 for number in range(3)]
    some = torch.zeros(12, dtype=torch.int64)
    errors = Errors(torch.zeros(12, 3, 8, 8, dtype=torch.uint8), some, some + 1, torch.full((12,), 0.9))
    found = Classified(1.0, 0.5, None, torch.eye(3, dtype=torch.int64), errors)
    draw_confusion(tmp_path / "confusion.png", found, names, "a run")
    draw_errors(tmp_path / "errors.png", errors, names, "a run")
    matrix, pictures = figures
    for figure in figures:
        figure.draw_without_rendering()
    axis = matrix.axes[0]
    for text in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.title):
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= matrix.bbox.width
        assert 0 <= box.y0 < box.y1 <= matrix.bbox.height
    assert axis.get_window_extent().width > matrix.bbox.width / 4
    titles = [axis.title.get_window_extent() for axis in pictures.axes]
    for left, right in pairwise(titles[:6]):
        assert left.x1 <= right.x0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [FORMULA, NO_TEXT])
def test_classes_may_have_any_name(tmp_path, name):
    labels, predicted = torch.tensor([0]), torch.tensor([1])
    errors = Errors(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), labels, predicted, torch.tensor([0.9]))
    found = Classified(1.0, 0.5, None, torch.tensor([[1, 1], [0, 2]]), errors)
    draw_confusion(tmp_path / "confusion.png", found, [name, "b"], "a run")
    draw_errors(tmp_path / "errors.png", errors, [name, "b"], "a run")
    assert len(list(tmp_path.iterdir())) == 2
