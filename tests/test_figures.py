"""Names of runs and classes in pictures: any that a folder can have."""

import os

import pytest
import torch

from bimkern.evaluate import attention_report, report
from bimkern.evaluate.attention_analysis import LayerAttention
from bimkern.evaluate.depths import DepthResult
from bimkern.figures import legend_name, new_figure, plain
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
@pytest.mark.parametrize("name", [FORMULA, NO_TEXT])
def test_classes_may_have_any_name(tmp_path, name):
    labels, predicted = torch.tensor([0]), torch.tensor([1])
    errors = Errors(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), labels, predicted, torch.tensor([0.9]))
    found = Classified(1.0, 0.5, None, torch.tensor([[1, 1], [0, 2]]), errors)
    draw_confusion(tmp_path / "confusion.png", found, [name, "b"], "a run")
    draw_errors(tmp_path / "errors.png", errors, [name, "b"], "a run")
    assert len(list(tmp_path.iterdir())) == 2
